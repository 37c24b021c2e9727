package dev.betrace.kms.example;

import com.google.protobuf.ByteString;
import dev.betrace.kms.v1.DecryptRequest;
import dev.betrace.kms.v1.EncryptRequest;
import jakarta.annotation.PostConstruct;
import jakarta.annotation.PreDestroy;
import jakarta.enterprise.context.ApplicationScoped;
import jakarta.inject.Inject;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import org.eclipse.microprofile.config.inject.ConfigProperty;

/**
 * The daemon as a bean of Quarkus, or of any CDI container with MicroProfile Config: one channel for the application.
 *
 * <p>The names of its settings do not begin with {@code betrace.kms.}: the daemon reads those from the same file, and
 * refuses one that it does not know.
 */
@ApplicationScoped
public class KmsBean {
  @Inject
  @ConfigProperty(name = "betrace.sidecar.kms.target", defaultValue = "127.0.0.1:50051")
  String target;

  @Inject
  @ConfigProperty(name = "betrace.sidecar.kms.token-file")
  Optional<Path> tokenFile;

  private Kms kms;

  @PostConstruct
  void connect() {
    kms = new Kms(target, tokenFile);
  }

  @PreDestroy
  void close() {
    kms.close();
  }

  /** Returns the payload sealed for a tenant and a context. */
  public byte[] encrypt(String tenant, byte[] plaintext, Map<String, String> context) {
    var request =
        EncryptRequest.newBuilder()
            .setTenantId(tenant)
            .setPlaintext(ByteString.copyFrom(plaintext))
            .putAllEncryptionContext(context)
            .build();
    return kms.call(stub -> stub.encrypt(request)).getCiphertextBlob().toByteArray();
  }

  /** Returns the payload of a ciphertext that was sealed for a tenant and a context. */
  public byte[] decrypt(String tenant, byte[] ciphertext, Map<String, String> context) {
    var request =
        DecryptRequest.newBuilder()
            .setTenantId(tenant)
            .setCiphertextBlob(ByteString.copyFrom(ciphertext))
            .putAllEncryptionContext(context)
            .build();
    return kms.call(stub -> stub.decrypt(request)).getPlaintext().toByteArray();
  }
}
