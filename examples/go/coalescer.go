package main

import (
	"context"
	"sync"
	"time"
)

type outcome[O any] struct {
	result O
	err    error
}

type call[I, O any] struct {
	item I
	done chan outcome[O]
}

// Coalescer makes one batch of the calls that come while another batch is on its way.
type Coalescer[I, O any] struct {
	Send    func(ctx context.Context, items []I) ([]O, []error, error)
	Timeout time.Duration

	mutex   sync.Mutex
	waiting []call[I, O]
	sending bool
}

func (c *Coalescer[I, O]) Call(ctx context.Context, item I) (O, error) {
	mine := call[I, O]{item, make(chan outcome[O], 1)}
	c.mutex.Lock()
	c.waiting = append(c.waiting, mine)
	if !c.sending {
		c.sending = true
		go c.run()
	}
	c.mutex.Unlock()
	select {
	case got := <-mine.done:
		return got.result, got.err
	case <-ctx.Done():
		var none O
		return none, ctx.Err()
	}
}

func (c *Coalescer[I, O]) run() {
	for {
		c.mutex.Lock()
		batch := c.waiting[:min(len(c.waiting), 1000)]
		c.waiting = c.waiting[len(batch):]
		c.sending = len(batch) > 0
		c.mutex.Unlock()
		if len(batch) == 0 {
			return
		}
		items := make([]I, len(batch))
		for at, each := range batch {
			items[at] = each.item
		}
		ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
		results, errs, err := c.Send(ctx, items)
		cancel()
		for at, each := range batch {
			if err != nil {
				each.done <- outcome[O]{err: err}
			} else {
				each.done <- outcome[O]{results[at], errs[at]}
			}
		}
	}
}
