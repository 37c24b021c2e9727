import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * Calls Encrypt without a pause, in several threads, until the standard input ends. It prints "calling" after the first
 * answer, and in the end how many calls it made and why some of them failed, as JSON: {@code java -cp 'jars/*'
 * Caller.java TARGET SERVICE_CONFIG}.
 *
 * <p>The channel is what docs/clients.md gives to users of grpc-java. Requests are encoded by hand, so that the program
 * needs nothing but grpc-java.
 */
public final class Caller {
  private static final int THREADS = 4;
  // EncryptRequest{tenant_id: "acme", plaintext: "x"}
  private static final byte[] REQUEST = "\n\4acme\22\1x".getBytes(StandardCharsets.US_ASCII);

  private static final MethodDescriptor.Marshaller<byte[]> RAW =
      new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] value) {
          return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
          try {
            return stream.readAllBytes();
          } catch (IOException cause) {
            throw new UncheckedIOException(cause);
          }
        }
      };

  private static final MethodDescriptor<byte[], byte[]> ENCRYPT =
      MethodDescriptor.newBuilder(RAW, RAW)
          .setType(MethodDescriptor.MethodType.UNARY)
          .setFullMethodName("betrace.kms.v1.KeyManagementService/Encrypt")
          .build();

  private static volatile boolean stopping;
  private static int calls;
  private static final Map<String, Integer> FAILURES = new java.util.TreeMap<>();

  public static void main(String[] arguments) throws Exception {
    @SuppressWarnings("unchecked")
    Map<String, ?> serviceConfig = new Gson().fromJson(arguments[1], Map.class);
    ManagedChannel channel =
        Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create())
            .defaultServiceConfig(serviceConfig)
            .enableRetry()
            .build();
    ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
    timer.scheduleWithFixedDelay(channel::resetConnectBackoff, 1, 1, TimeUnit.SECONDS);
    if (encrypt(channel) != null) {
      throw new IllegalStateException("the first call failed");
    }
    System.out.println("calling");
    List<Thread> threads = new ArrayList<>();
    for (int number = 0; number < THREADS; number++) {
      threads.add(new Thread(() -> call(channel)));
    }
    threads.forEach(Thread::start);
    System.in.readAllBytes();
    stopping = true;
    for (Thread thread : threads) {
      thread.join();
    }
    timer.shutdownNow();
    channel.shutdownNow();
    System.out.println(new Gson().toJson(Map.of("calls", calls, "failures", FAILURES)));
  }

  private static void call(ManagedChannel channel) {
    while (!stopping) {
      String failure = encrypt(channel);
      synchronized (FAILURES) {
        calls++;
        if (failure != null) {
          FAILURES.merge(failure, 1, Integer::sum);
        }
      }
    }
  }

  /** Returns why the call failed, or null. */
  private static String encrypt(ManagedChannel channel) {
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(20, TimeUnit.SECONDS);
    try {
      byte[] response = ClientCalls.blockingUnaryCall(channel, ENCRYPT, options, REQUEST);
      return response.length == 0 ? "empty response" : null;
    } catch (StatusRuntimeException error) {
      String description = String.valueOf(error.getStatus().getDescription());
      return error.getStatus().getCode() + ": " + description.substring(0, Math.min(120, description.length()));
    }
  }
}
