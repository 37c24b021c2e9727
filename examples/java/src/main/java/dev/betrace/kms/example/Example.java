package dev.betrace.kms.example;

import com.google.protobuf.ByteString;
import dev.betrace.kms.v1.AttributeValue;
import dev.betrace.kms.v1.ComplianceSpan;
import dev.betrace.kms.v1.DecryptBatchItem;
import dev.betrace.kms.v1.DecryptBatchRequest;
import dev.betrace.kms.v1.DecryptBatchResult;
import dev.betrace.kms.v1.DecryptRequest;
import dev.betrace.kms.v1.EncryptBatchItem;
import dev.betrace.kms.v1.EncryptBatchRequest;
import dev.betrace.kms.v1.EncryptBatchResult;
import dev.betrace.kms.v1.EncryptRequest;
import dev.betrace.kms.v1.GenerateDataKeyRequest;
import dev.betrace.kms.v1.GenerateMacRequest;
import dev.betrace.kms.v1.GetPublicKeysRequest;
import dev.betrace.kms.v1.ItemStatus;
import dev.betrace.kms.v1.KeySpec;
import dev.betrace.kms.v1.ReEncryptRequest;
import dev.betrace.kms.v1.SignMode;
import dev.betrace.kms.v1.SignSpanRequest;
import dev.betrace.kms.v1.SignSpanResult;
import dev.betrace.kms.v1.SignSpansRequest;
import dev.betrace.kms.v1.SignedSpan;
import dev.betrace.kms.v1.VerifyMacRequest;
import dev.betrace.kms.v1.VerifySpanRequest;
import dev.betrace.kms.v1.VerifySpanResult;
import dev.betrace.kms.v1.VerifySpansRequest;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.stream.IntStream;

/**
 * Makes the main calls of a betrace-kms daemon: {@code Example TENANT TARGET...}.
 *
 * <p>A target is host:port or unix:/path. KMS_TOKEN_FILE names the file of a bearer token, where the daemon wants one.
 */
public final class Example {
  private static final int PAYLOAD_BYTES = 4 << 20; // the most that a daemon takes unless configured otherwise
  private static final SecureRandom RANDOM = new SecureRandom();
  private static int calls;
  private static int failed;

  private final Kms kms;
  private final String tenant;

  private Example(Kms kms, String tenant) {
    this.kms = kms;
    this.tenant = tenant;
  }

  public static void main(String[] arguments) {
    if (arguments.length < 2) {
      System.err.println("usage: Example TENANT TARGET...");
      System.exit(2);
    }
    var tokenFile = Optional.ofNullable(System.getenv("KMS_TOKEN_FILE")).map(Path::of);
    for (var target : Arrays.asList(arguments).subList(1, arguments.length)) {
      System.out.println(target);
      try (var kms = new Kms(target, tokenFile)) {
        call("Health.Check", () -> kms.check().name());
        var example = new Example(kms, arguments[0]);
        example.encryption();
        example.batches();
        example.signatures();
        example.hashes();
        example.coalesced();
      }
    }
    System.out.printf("%d calls made, %d failed%n", calls, failed);
    System.exit(failed == 0 ? 0 : 1);
  }

  /** Makes a call, and prints what came of it. */
  private static void call(String name, Supplier<String> make) {
    calls++;
    String found;
    try {
      found = make.get();
    } catch (StatusRuntimeException error) {
      failed++;
      found = "FAILED: " + Kms.reason(error) + " " + error.getMessage();
    } catch (RuntimeException error) {
      failed++;
      found = "FAILED: " + error.getMessage();
    }
    System.out.printf("  %-16s %s%n", name, found);
  }

  private static void check(boolean condition, String what) {
    if (!condition) {
      throw new IllegalStateException(what);
    }
  }

  private void encryption() {
    var email = Map.of("field", "email");
    var payload = random(PAYLOAD_BYTES);
    var key = new ByteString[2];
    call(
        "GenerateDataKey",
        () -> {
          var request = GenerateDataKeyRequest.newBuilder().setTenantId(tenant).setKeySpec(KeySpec.AES_256).build();
          var answer = kms.call(stub -> stub.generateDataKey(request));
          key[0] = answer.getPlaintext();
          key[1] = answer.getCiphertextBlob();
          return key[0].size() + " bytes, and " + key[1].size() + " wrapped";
        });
    call(
        "Decrypt",
        () -> {
          check(decrypt(key[1], Map.of()).equals(key[0]), "another key");
          return "the data key";
        });
    var sealed = new ByteString[1];
    call(
        "Encrypt",
        () -> {
          var request =
              EncryptRequest.newBuilder().setTenantId(tenant).setPlaintext(payload).putAllEncryptionContext(email).build();
          sealed[0] = kms.call(stub -> stub.encrypt(request)).getCiphertextBlob();
          return payload.size() + " bytes in " + sealed[0].size();
        });
    call(
        "Decrypt",
        () -> {
          check(decrypt(sealed[0], email).equals(payload), "another payload");
          return "the payload";
        });
    call(
        "Decrypt",
        () -> {
          try {
            decrypt(sealed[0], Map.of());
          } catch (StatusRuntimeException error) {
            check(error.getStatus().getCode() == Status.Code.INVALID_ARGUMENT, error.getMessage());
            check(Kms.reason(error).equals("CIPHERTEXT_DOES_NOT_OPEN"), Kms.reason(error));
            return "refused without its context: " + Kms.reason(error);
          }
          throw new IllegalStateException("it was opened without its context");
        });
    call(
        "ReEncrypt",
        () -> {
          var request =
              ReEncryptRequest.newBuilder()
                  .setTenantId(tenant)
                  .setCiphertextBlob(key[1])
                  .putAllDestinationEncryptionContext(email)
                  .build();
          return kms.call(stub -> stub.reEncrypt(request)).getCiphertextBlob().size() + " bytes";
        });
  }

  private ByteString decrypt(ByteString ciphertext, Map<String, String> context) {
    var request =
        DecryptRequest.newBuilder()
            .setTenantId(tenant)
            .setCiphertextBlob(ciphertext)
            .putAllEncryptionContext(context)
            .build();
    return kms.call(stub -> stub.decrypt(request)).getPlaintext();
  }

  private void batches() {
    var items =
        IntStream.range(0, 10)
            .mapToObj(
                at ->
                    EncryptBatchItem.newBuilder()
                        .setPlaintext(ByteString.copyFromUtf8("payload " + at))
                        .putEncryptionContext("record", String.valueOf(at))
                        .build())
            .toList();
    var sealed = new ArrayList<EncryptBatchResult>();
    call(
        "EncryptBatch",
        () -> {
          Function<List<EncryptBatchItem>, List<EncryptBatchResult>> send =
              part -> {
                var request = EncryptBatchRequest.newBuilder().setTenantId(tenant).addAllItems(part).build();
                return kms.call(stub -> stub.encryptBatch(request)).getResultsList();
              };
          sealed.addAll(accepted(kms.batch(items, send, EncryptBatchResult::getStatus), EncryptBatchResult::getStatus));
          return sealed.size() + " payloads";
        });
    call(
        "DecryptBatch",
        () -> {
          var ciphertexts =
              IntStream.range(0, sealed.size())
                  .mapToObj(
                      at ->
                          DecryptBatchItem.newBuilder()
                              .setCiphertextBlob(sealed.get(at).getCiphertextBlob())
                              .putAllEncryptionContext(items.get(at).getEncryptionContextMap())
                              .build())
                  .toList();
          Function<List<DecryptBatchItem>, List<DecryptBatchResult>> send =
              part -> {
                var request = DecryptBatchRequest.newBuilder().setTenantId(tenant).addAllItems(part).build();
                return kms.call(stub -> stub.decryptBatch(request)).getResultsList();
              };
          var opened =
              accepted(kms.batch(ciphertexts, send, DecryptBatchResult::getStatus), DecryptBatchResult::getStatus);
          var payloads = opened.stream().map(DecryptBatchResult::getPlaintext).toList();
          check(payloads.equals(items.stream().map(EncryptBatchItem::getPlaintext).toList()), "other payloads");
          return opened.size() + " payloads";
        });
  }

  /** Returns results, none of which was refused. */
  private static <R> List<R> accepted(List<R> results, Function<R, ItemStatus> status) {
    results.forEach(result -> accepted(status.apply(result)));
    return results;
  }

  private static void accepted(ItemStatus status) {
    if (status.getCode() != 0) {
      throw Status.fromCodeValue(status.getCode())
          .withDescription(status.getReason() + ": " + status.getMessage())
          .asRuntimeException();
    }
  }

  private void signatures() {
    var span = span("user.login");
    var signed = SignedSpan.newBuilder().setSpan(span);
    call(
        "SignSpan",
        () -> {
          var request = SignSpanRequest.newBuilder().setTenantId(tenant).setSpan(span).build();
          var answer = kms.call(stub -> stub.signSpan(request));
          signed.setSignature(answer.getSignature()).setKeyId(answer.getKeyId());
          return "by key " + answer.getKeyId();
        });
    call(
        "VerifySpan",
        () -> {
          var request =
              VerifySpanRequest.newBuilder()
                  .setTenantId(tenant)
                  .setSpan(span)
                  .setSignature(signed.getSignature())
                  .setKeyId(signed.getKeyId())
                  .build();
          var answer = kms.call(stub -> stub.verifySpan(request));
          check(answer.getValid(), answer.getReason().name());
          return answer.getReason().name();
        });
    var spans = List.of(span("one"), span("two"), span("three"));
    var results = new ArrayList<SignSpanResult>();
    call(
        "SignSpans",
        () -> {
          results.addAll(accepted(sign(spans, SignMode.BATCH_PROOF), SignSpanResult::getStatus));
          return "one signature, and proofs";
        });
    verify(spans, results);
    call(
        "GetPublicKeys",
        () -> {
          var request = GetPublicKeysRequest.newBuilder().setTenantId(tenant).build();
          return String.valueOf(kms.call(stub -> stub.getPublicKeys(request)).getKeysCount());
        });
  }

  private void verify(List<ComplianceSpan> spans, List<SignSpanResult> signed) {
    var request = VerifySpansRequest.newBuilder().setTenantId(tenant);
    for (int at = 0; at < signed.size(); at++) {
      var each = SignedSpan.newBuilder().setSpan(spans.get(at)).setKeyId(signed.get(at).getKeyId());
      each.setSignature(signed.get(at).getSignature());
      if (signed.get(at).hasProof()) {
        each.setProof(signed.get(at).getProof());
      }
      request.addSpans(each);
    }
    call(
        "VerifySpans",
        () -> {
          var results = kms.call(stub -> stub.verifySpans(request.build())).getResultsList();
          accepted(results, VerifySpanResult::getStatus).forEach(each -> check(each.getValid(), each.getReason().name()));
          return results.size() + " VALID";
        });
  }

  private List<SignSpanResult> sign(List<ComplianceSpan> spans, SignMode mode) {
    var request = SignSpansRequest.newBuilder().setTenantId(tenant).addAllSpans(spans).setMode(mode).build();
    return kms.call(stub -> stub.signSpans(request)).getResultsList();
  }

  private void hashes() {
    var message = ByteString.copyFromUtf8("alice@example.com");
    var verify = VerifyMacRequest.newBuilder().setTenantId(tenant).setPurpose("users.email").setMessage(message);
    call(
        "GenerateMac",
        () -> {
          var request =
              GenerateMacRequest.newBuilder().setTenantId(tenant).setPurpose("users.email").setMessage(message).build();
          verify.setMac(kms.call(stub -> stub.generateMac(request)).getMac());
          return verify.getMac().size() + " bytes";
        });
    call(
        "VerifyMac",
        () -> {
          check(kms.call(stub -> stub.verifyMac(verify.build())).getMacValid(), "not valid");
          return "valid";
        });
  }

  /** Makes a hundred calls at once: they travel as a few batches, and each gets its own result. */
  private void coalesced() {
    var batches = new AtomicInteger();
    var spans = IntStream.range(0, 100).mapToObj(number -> span("span " + number)).toList();
    var signed = new ArrayList<SignSpanResult>();
    Function<List<ComplianceSpan>, List<SignSpanResult>> send = part -> sign(part, SignMode.EACH);
    var coalescer =
        new Coalescer<ComplianceSpan, SignSpanResult>(
            part ->
                CompletableFuture.supplyAsync(
                    () -> {
                      batches.incrementAndGet();
                      return kms.batch(part, send, SignSpanResult::getStatus).stream()
                          .<Supplier<SignSpanResult>>map(
                              result ->
                                  () -> {
                                    accepted(result.getStatus());
                                    return result;
                                  })
                          .toList();
                    }));
    call(
        "SignSpan x 100",
        () -> {
          var calls = spans.stream().map(coalescer::call).toList();
          calls.forEach(each -> signed.add(each.join()));
          return "in " + batches + " batches";
        });
    verify(spans, signed);
  }

  private static ByteString random(int length) {
    var bytes = new byte[length];
    RANDOM.nextBytes(bytes);
    return ByteString.copyFrom(bytes);
  }

  private static ComplianceSpan span(String name) {
    return ComplianceSpan.newBuilder()
        .setTraceId(random(16))
        .setSpanId(random(8))
        .setName(name)
        .setFramework("soc2")
        .putAttributes("user", AttributeValue.newBuilder().setStringValue("alice").build())
        .build();
  }
}
