package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"betrace.dev/kms/example/kmsv1"
)

const (
	deadline     = 10 * time.Second // of a call, its repetitions included
	receiveLimit = 8 << 20          // an answer is longer than the payload of 4 MiB in it; the default is 4,194,304 bytes
)

// gRPC repeats what is UNAVAILABLE; what is RESOURCE_EXHAUSTED is for invoke, because its RetryInfo has the time to wait.
const serviceConfig = `{
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
}`

// connect makes a channel to the daemon at host:port or unix:/path. It sends the token of a file, if there is one.
func connect(target, token string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(receiveLimit)),
		grpc.WithConnectParams(grpc.ConnectParams{ // after an outage it would wait for up to two minutes
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithUnaryInterceptor(invoke),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(token)))
	}
	return grpc.NewClient(target, options...)
}

// tokenFile is read for each call, so that a new token is sent from then on.
type tokenFile string

func (file tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text, err := os.ReadFile(string(file))
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "the token file cannot be read: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 0 && words[0][0] != '#' {
			return map[string]string{"authorization": "Bearer " + words[len(words)-1]}, nil
		}
	}
	return nil, status.Error(codes.Unauthenticated, "the token file has no token")
}

func (tokenFile) RequireTransportSecurity() bool { return false } // loopback and unix sockets

// invoke gives a call its deadline, and until then repeats what is RESOURCE_EXHAUSTED: as long after as RetryInfo says,
// and twice as long each further time.
func invoke(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoker grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	for repetition := 0; ; repetition++ {
		err := invoker(ctx, method, request, reply, conn, options...)
		reason, delay, ok := details(err)
		if status.Code(err) != codes.ResourceExhausted || !ok || !pause(ctx, delay<<repetition, reason) {
			return err
		}
	}
}

// pause waits, unless the deadline comes first.
func pause(ctx context.Context, delay time.Duration, reason string) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < delay {
		return false
	}
	fmt.Printf("  waits %v: %s\n", delay, reason)
	select {
	case <-time.After(delay):
		return true
	case <-ctx.Done():
		return false
	}
}

// details returns the daemon's name for an error, and after how long another try may succeed, where one may.
func details(err error) (reason string, delay time.Duration, retry bool) {
	for _, detail := range status.Convert(err).Details() {
		switch info := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = info.GetReason()
		case *errdetails.RetryInfo:
			delay, retry = info.GetRetryDelay().AsDuration(), true
		}
	}
	return reason, delay, retry
}

// inBatch sends items, and again those that were refused with a retry delay: not the whole batch.
func inBatch[I any, R interface{ GetStatus() *kmsv1.ItemStatus }](ctx context.Context, items []I,
	send func(context.Context, []I) ([]R, error)) ([]R, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	results, waiting := make([]R, len(items)), make([]int, len(items))
	for at := range items {
		waiting[at] = at
	}
	for repetition := 0; ; repetition++ {
		part := make([]I, len(waiting))
		for at, index := range waiting {
			part[at] = items[index]
		}
		answers, err := send(ctx, part)
		if err != nil {
			return nil, err
		}
		var again []int
		var delay time.Duration
		var reason string
		for at, index := range waiting {
			results[index] = answers[at]
			if found := answers[at].GetStatus(); found.GetRetryDelay() != nil {
				again = append(again, index)
				delay, reason = max(delay, found.GetRetryDelay().AsDuration()), found.GetReason()
			}
		}
		if waiting = again; len(again) == 0 || !pause(ctx, delay<<repetition, reason) {
			return results, nil
		}
	}
}
