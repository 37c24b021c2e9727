package dev.betrace.kms.example;

import com.google.gson.Gson;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.betrace.kms.v1.ItemStatus;
import dev.betrace.kms.v1.KeyManagementServiceGrpc;
import dev.betrace.kms.v1.KeyManagementServiceGrpc.KeyManagementServiceBlockingStub;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.StatusProto;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.stream.IntStream;

/** A client of the daemon for grpc-java: limits, deadlines, retries, tokens and the details of errors. */
public final class Kms implements AutoCloseable {
  private static final Duration DEADLINE = Duration.ofSeconds(10); // of a call, its repetitions included
  // An answer is longer than the payload of 4 MiB in it; the default is 4,194,304 bytes.
  private static final int RECEIVE_LIMIT = 8 << 20;
  // gRPC repeats what is UNAVAILABLE; what is RESOURCE_EXHAUSTED is for call(): its RetryInfo has the time to wait.
  private static final String SERVICE_CONFIG =
      """
      {
        "methodConfig": [
          {
            "name": [{"service": "betrace.kms.v1.KeyManagementService"}],
            "waitForReady": true,
            "retryPolicy": {
              "maxAttempts": 3,
              "initialBackoff": "0.1s",
              "maxBackoff": "1s",
              "backoffMultiplier": 2,
              "retryableStatusCodes": ["UNAVAILABLE"]
            }
          }
        ]
      }
      """;

  private final ManagedChannel channel;
  private final KeyManagementServiceBlockingStub stub;
  private final ScheduledExecutorService timer;

  /** Connects to host:port or unix:/path, and sends the token of a file, if there is one. */
  public Kms(String target, Optional<Path> tokenFile) {
    @SuppressWarnings("unchecked")
    Map<String, ?> serviceConfig = new Gson().fromJson(SERVICE_CONFIG, Map.class);
    channel =
        Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()) // loopback and unix sockets
            .defaultServiceConfig(serviceConfig)
            .maxInboundMessageSize(RECEIVE_LIMIT)
            .build();
    var plain = KeyManagementServiceGrpc.newBlockingStub(channel);
    stub = tokenFile.map(file -> plain.withCallCredentials(new TokenFile(file))).orElse(plain);
    timer =
        Executors.newSingleThreadScheduledExecutor(
            task -> {
              var thread = new Thread(task, "kms-reconnect");
              thread.setDaemon(true);
              return thread;
            });
    // After an outage gRPC would wait for up to two minutes before it connects again.
    timer.scheduleWithFixedDelay(channel::resetConnectBackoff, 1, 1, TimeUnit.SECONDS);
  }

  @Override
  public void close() {
    timer.shutdownNow();
    channel.shutdown();
  }

  /**
   * Makes a call. Until its deadline it repeats what is RESOURCE_EXHAUSTED: as long after as RetryInfo says, and twice as
   * long each further time.
   */
  public <R> R call(Function<KeyManagementServiceBlockingStub, R> rpc) {
    long end = System.nanoTime() + DEADLINE.toNanos();
    for (long factor = 1; ; factor *= 2) {
      try {
        return rpc.apply(stub.withDeadlineAfter(end - System.nanoTime(), TimeUnit.NANOSECONDS));
      } catch (StatusRuntimeException error) {
        var delay = retryDelay(error);
        if (error.getStatus().getCode() != Status.Code.RESOURCE_EXHAUSTED
            || delay.isEmpty()
            || !pause(delay.get().multipliedBy(factor), end, reason(error))) {
          throw error;
        }
      }
    }
  }

  /** Sends items, and again those that were refused with a retry delay: not the whole batch. */
  public <I, R> List<R> batch(List<I> items, Function<List<I>, List<R>> send, Function<R, ItemStatus> status) {
    long end = System.nanoTime() + DEADLINE.toNanos();
    var results = new ArrayList<R>(Collections.nCopies(items.size(), null));
    var waiting = IntStream.range(0, items.size()).boxed().toList();
    for (long factor = 1; ; factor *= 2) {
      var answers = send.apply(waiting.stream().map(items::get).toList());
      for (int at = 0; at < answers.size(); at++) {
        results.set(waiting.get(at), answers.get(at));
      }
      waiting = waiting.stream().filter(index -> status.apply(results.get(index)).hasRetryDelay()).toList();
      if (waiting.isEmpty()) {
        return results;
      }
      var refused = waiting.stream().map(index -> status.apply(results.get(index))).toList();
      var delay = refused.stream().map(each -> duration(each.getRetryDelay())).max(Duration::compareTo).get();
      if (!pause(delay.multipliedBy(factor), end, refused.get(0).getReason())) {
        return results;
      }
    }
  }

  /** Returns the state of the service. */
  public ServingStatus check() {
    var request = HealthCheckRequest.newBuilder().setService("betrace.kms.v1.KeyManagementService").build();
    var health = HealthGrpc.newBlockingStub(channel).withDeadlineAfter(DEADLINE.toMillis(), TimeUnit.MILLISECONDS);
    return health.check(request).getStatus();
  }

  /** Returns the daemon's name for an error, such as CIPHERTEXT_DOES_NOT_OPEN. */
  public static String reason(StatusRuntimeException error) {
    return detail(error, ErrorInfo.class).map(ErrorInfo::getReason).orElse("");
  }

  /** Returns after how long another try may succeed, where one may. */
  public static Optional<Duration> retryDelay(StatusRuntimeException error) {
    return detail(error, RetryInfo.class).map(info -> duration(info.getRetryDelay()));
  }

  private static <D extends Message> Optional<D> detail(StatusRuntimeException error, Class<D> type) {
    var status = StatusProto.fromThrowable(error);
    if (status == null) {
      return Optional.empty();
    }
    for (var detail : status.getDetailsList()) {
      if (detail.is(type)) {
        try {
          return Optional.of(detail.unpack(type));
        } catch (InvalidProtocolBufferException unreadable) {
          return Optional.empty();
        }
      }
    }
    return Optional.empty();
  }

  private static Duration duration(com.google.protobuf.Duration value) {
    return Duration.ofSeconds(value.getSeconds(), value.getNanos());
  }

  /** Waits, unless the deadline comes first. */
  private static boolean pause(Duration delay, long end, String reason) {
    if (System.nanoTime() + delay.toNanos() > end) {
      return false;
    }
    System.out.printf("  waits %d ms: %s%n", delay.toMillis(), reason);
    try {
      Thread.sleep(delay.toMillis() + 1);
      return true;
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      return false;
    }
  }
}
