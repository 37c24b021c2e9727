"""The coalescers that docs/batching.md names, each as it stands: every call gets its own outcome, by few batches."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.interop.tools import ROOT, tool

DOCUMENT = ROOT / "docs" / "batching.md"
CALLS = 2_500
EXPECTED = {"answered": CALLS - CALLS // 10, "refused": CALLS // 10, "wrong": 0, "failed": 3, "served": 3}
"""Each tenth call is refused. Of the batches after those one fails as a whole, and the next is served."""

JAVA = (
    """
final class Main {
  static int batches = 0;

  static CompletionStage<List<Supplier<Integer>>> send(List<Integer> items) {
    if (items.size() > 1000) throw new IllegalArgumentException();
    batches++;
    if (items.contains(-2)) throw new IllegalStateException("before it was sent");
    return CompletableFuture.supplyAsync(() -> {
      if (items.contains(-1)) throw new IllegalStateException("whole");
      return items.stream().<Supplier<Integer>>map(item -> () -> {
        if (item % 10 == 0) throw new IllegalStateException("refused " + item);
        return item * 2;
      }).toList();
    });
  }

  public static void main(String[] arguments) throws Exception {
    var coalescer = new Coalescer<Integer, Integer>(Main::send);
    var calls = new ArrayList<CompletableFuture<Integer>>();
    for (int item = 0; item < %CALLS%; item++) calls.add(coalescer.call(item));
    int answered = 0, refused = 0, wrong = 0, failed = 0, served = 0;
    for (int item = 0; item < calls.size(); item++) {
      try {
        if (calls.get(item).get() == item * 2) answered++;
        else wrong++;
      } catch (java.util.concurrent.ExecutionException error) {
        if (error.getCause().getMessage().equals("refused " + item)) refused++;
        else wrong++;
      }
    }
    for (int item : new int[] {-1, -2, -1, 1, 1, 1}) {
      try {
        if (coalescer.call(item).get() == 2) served++;
      } catch (java.util.concurrent.ExecutionException error) {
        failed++;
      }
    }
    System.out.printf("{\\"answered\\": %d, \\"refused\\": %d, \\"wrong\\": %d, \\"failed\\": %d, \\"served\\": %d,"
        + " \\"batches\\": %d}", answered, refused, wrong, failed, served, batches);
  }
}
"""
).replace("%CALLS%", str(CALLS))
GO = (
    """
package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	var batches, answered, refused, wrong, failed, served atomic.Int64
	whole := errors.New("whole")
	send := func(ctx context.Context, items []int) ([]int, []error, error) {
		batches.Add(1)
		results, errs := make([]int, len(items)), make([]error, len(items))
		if len(items) > 1000 {
			panic("too many")
		}
		for at, item := range items {
			if item == -1 {
				return nil, nil, whole
			}
			results[at] = item * 2
			if item%10 == 0 {
				errs[at] = fmt.Errorf("refused %d", item)
			}
		}
		return results, errs, nil
	}
	coalescer := &Coalescer[int, int]{Send: send, Timeout: time.Minute}
	coalescer.mutex.Lock() // all calls come before the first batch is taken
	var calls sync.WaitGroup
	for item := range %CALLS% {
		calls.Add(1)
		go func() {
			defer calls.Done()
			result, err := coalescer.Call(context.Background(), item)
			switch {
			case err == nil && result == item*2:
				answered.Add(1)
			case err != nil && err.Error() == fmt.Sprintf("refused %d", item):
				refused.Add(1)
			default:
				wrong.Add(1)
			}
		}()
	}
	coalescer.mutex.Unlock()
	calls.Wait()
	for _, item := range []int{-1, -1, -1, 1, 1, 1} {
		if result, err := coalescer.Call(context.Background(), item); err == nil && result == 2 {
			served.Add(1)
		} else if errors.Is(err, whole) {
			failed.Add(1)
		}
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := coalescer.Call(over, 1); err != nil && !errors.Is(err, context.Canceled) {
		wrong.Add(1)
	}
	fmt.Printf(`{"answered": %d, "refused": %d, "wrong": %d, "failed": %d, "served": %d, "batches": %d}`,
		answered.Load(), refused.Load(), wrong.Load(), failed.Load(), served.Load(), batches.Load())
}
"""
).replace("%CALLS%", str(CALLS))
NODE = (
    """
(async () => {
  let batches = 0, answered = 0, refused = 0, wrong = 0, failed = 0, served = 0;
  const coalescer = new Coalescer(async (items) => {
    if (items.length > 1000) throw new Error('too many');
    batches++;
    await null;
    if (items.includes(-1)) throw new Error('whole');
    const refusal = (item) => ({ status: { code: 3, message: `refused ${item}` } });
    return items.map((item) => (item % 10 ? { result: item * 2 } : refusal(item)));
  });
  await Promise.all(Array.from({ length: %CALLS% }, async (_, item) => {
    try {
      if ((await coalescer.call(item)).result === item * 2) answered++;
      else wrong++;
    } catch (error) {
      if (error.message === `refused ${item}` && error.code === 3) refused++;
      else wrong++;
    }
  }));
  for (const item of [-1, -1, -1, 1, 1, 1]) {
    try {
      if ((await coalescer.call(item)).result === 2) served++;
    } catch (error) {
      failed++;
    }
  }
  console.log(JSON.stringify({ answered, refused, wrong, failed, served, batches }));
})();
"""
).replace("%CALLS%", str(CALLS))


def coalescer(name: str) -> str:
    """Return the source that the document links to."""
    (found,) = re.findall(rf"\[{re.escape(name)}\]\((\S+)\)", DOCUMENT.read_text("utf-8"))
    return (DOCUMENT.parent / str(found)).read_text("utf-8")


def output(folder: Path, *command: str, **environ: str) -> str:
    """Run a command to its end, and return what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=folder, env=os.environ | environ, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("language", ["java", "go", "js"])
def test_the_coalescers_work(language: str, tmp_path: Path) -> None:
    """No call gets another one's outcome, each error is that of its item, and a failed batch is followed by others."""
    if language == "java":
        (tmp_path / "Main.java").write_text(coalescer("Coalescer.java") + JAVA)
        output(tmp_path, tool("javac"), "-Xlint:all", "-Werror", "-d", ".", "Main.java")
        printed = output(tmp_path, tool("java"), "-cp", ".", "dev.betrace.kms.example.Main")
    elif language == "go":
        (tmp_path / "coalescer.go").write_text(coalescer("coalescer.go"))
        (tmp_path / "main.go").write_text(GO)
        (tmp_path / "go.mod").write_text("module coalescer\n\ngo 1.22\n")
        printed = output(tmp_path, tool("go"), "run", ".", GOFLAGS="-mod=mod", GOTOOLCHAIN="local")
    else:
        (tmp_path / "main.mjs").write_text(coalescer("coalescer.mjs") + NODE)
        printed = output(tmp_path, tool("node"), "main.mjs")
    found = json.loads(printed)
    batches = found.pop("batches")
    assert EXPECTED == found
    assert 3 + 6 <= batches < CALLS, "each call went alone"
