// Caller calls Encrypt without a pause, in several goroutines, until its standard input ends. It prints "calling" after
// the first answer, and in the end how many calls it made and why some of them failed, as JSON.
//
//	caller TARGET SERVICE_CONFIG
//
// The channel is what docs/clients.md gives to users of grpc-go. Requests are encoded by hand, so that the program needs
// nothing but grpc-go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const goroutines = 4

// EncryptRequest{tenant_id: "acme", plaintext: "x"}
var request = []byte("\x0a\x04acme\x12\x01x")

type rawCodec struct{}

func (rawCodec) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, value any) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (rawCodec) Name() string { return "proto" }

func main() {
	channel, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(os.Args[2]),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		panic(err)
	}
	call := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		var response []byte
		err := channel.Invoke(ctx, "/betrace.kms.v1.KeyManagementService/Encrypt", &request, &response)
		if err == nil && len(response) == 0 {
			err = errors.New("empty response")
		}
		return err
	}
	if err := call(); err != nil {
		panic(err)
	}
	fmt.Println("calling")
	stop := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(stop) }()
	var all sync.WaitGroup
	var lock sync.Mutex
	calls, failures := 0, map[string]int{}
	for range goroutines {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := call()
				lock.Lock()
				calls++
				if err != nil {
					failures[fmt.Sprintf("%s: %.120s", status.Code(err), status.Convert(err).Message())]++
				}
				lock.Unlock()
			}
		})
	}
	all.Wait()
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"calls": calls, "failures": failures})
}
