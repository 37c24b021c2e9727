package dev.betrace.kms.example;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.function.Function;
import java.util.function.Supplier;

/** Makes one batch of the calls that come while another batch is on its way. */
final class Coalescer<I, O> {
  private record Call<I, O>(I item, CompletableFuture<O> result) {}

  private final Function<List<I>, CompletionStage<List<Supplier<O>>>> send;
  private final ArrayDeque<Call<I, O>> waiting = new ArrayDeque<>();
  private boolean sending;

  Coalescer(Function<List<I>, CompletionStage<List<Supplier<O>>>> send) {
    this.send = send;
  }

  CompletableFuture<O> call(I item) {
    var call = new Call<>(item, new CompletableFuture<O>());
    synchronized (this) {
      waiting.add(call);
      if (sending) return call.result();
      sending = true;
    }
    next();
    return call.result();
  }

  private void next() {
    var batch = new ArrayList<Call<I, O>>();
    synchronized (this) {
      while (!waiting.isEmpty() && batch.size() < 1000) batch.add(waiting.poll());
      sending = !batch.isEmpty();
    }
    if (batch.isEmpty()) return;
    CompletionStage<List<Supplier<O>>> sent;
    try {
      sent = send.apply(batch.stream().map(Call::item).toList());
    } catch (RuntimeException unsent) {
      sent = CompletableFuture.failedFuture(unsent);
    }
    sent.whenComplete((results, error) -> {
      for (int at = 0; at < batch.size(); at++) {
        var result = batch.get(at).result();
        try {
          if (error != null) result.completeExceptionally(error);
          else result.complete(results.get(at).get());
        } catch (RuntimeException refused) {
          result.completeExceptionally(refused);
        }
      }
      next();
    });
  }
}
