package dev.betrace.kms.example;

import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executor;

/** Sends the first token of a file, which is read for each call, so that a new token is sent from then on. */
final class TokenFile extends CallCredentials {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Path file;

  TokenFile(Path file) {
    this.file = file;
  }

  @Override
  public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
    executor.execute(
        () -> {
          try (var lines = Files.lines(file)) {
            var line = lines.map(String::strip).filter(each -> !each.isEmpty() && !each.startsWith("#")).findFirst();
            var words = line.orElseThrow(() -> new IOException("it has no token")).split("\\s+");
            var metadata = new Metadata();
            metadata.put(AUTHORIZATION, "Bearer " + words[words.length - 1]);
            applier.apply(metadata);
          } catch (IOException | RuntimeException cause) {
            applier.fail(Status.UNAUTHENTICATED.withDescription("the token file cannot be read").withCause(cause));
          }
        });
  }
}
