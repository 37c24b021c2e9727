// Load calls Encrypt in a closed loop: each caller makes its next call when the last one has ended. It prints what came
// of the calls as JSON: how many were answered OK, how many failed and by which status, and the good ones in each tenth
// of a second.
//
//	load TARGET -callers 64 -connections 1 -deadline 250ms -seconds 5 [-honour]
//
// With -honour a caller waits as long as RetryInfo says after a refusal; without, it calls again at once. Requests are
// encoded by hand, so that the program needs nothing but grpc-go.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const bucket = 100 * time.Millisecond

// EncryptRequest{tenant_id: "acme", plaintext: "x"}
var request = []byte("\x0a\x04acme\x12\x01x")

type rawCodec struct{}

func (rawCodec) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (rawCodec) Name() string { return "proto" }

func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func main() {
	callers := flag.Int("callers", 64, "")
	connections := flag.Int("connections", 1, "")
	deadline := flag.Duration("deadline", 10*time.Second, "")
	seconds := flag.Float64("seconds", 5, "")
	honour := flag.Bool("honour", false, "")
	target := os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		panic(err)
	}
	channels := make([]*grpc.ClientConn, *connections)
	for i := range channels {
		channel, err := grpc.NewClient(target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		if err != nil {
			panic(err)
		}
		channels[i] = channel
	}
	length := time.Duration(*seconds * float64(time.Second))
	good := make([]int, length/bucket+1)
	failed := map[string]int{}
	var lock sync.Mutex
	var all sync.WaitGroup
	begin := time.Now()
	for i := range *callers {
		channel := channels[i%len(channels)]
		all.Go(func() {
			for time.Since(begin) < length {
				ctx, cancel := context.WithTimeout(context.Background(), *deadline)
				var response []byte
				err := channel.Invoke(ctx, "/betrace.kms.v1.KeyManagementService/Encrypt", &request, &response)
				cancel()
				at := time.Since(begin)
				lock.Lock()
				if err != nil {
					failed[status.Code(err).String()]++
				} else if at < length {
					good[at/bucket]++
				}
				lock.Unlock()
				if err != nil && *honour {
					time.Sleep(retryDelay(err))
				}
			}
		})
	}
	all.Wait()
	total := 0
	for _, each := range good {
		total += each
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"good": total, "failed": failed, "timeline": good, "seconds": length.Seconds(),
	})
}
