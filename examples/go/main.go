// Example makes the main calls of a betrace-kms daemon: go run . TENANT TARGET...
//
// A target is host:port or unix:/path. KMS_TOKEN_FILE names the file of a bearer token, where the daemon wants one.
package main

//go:generate ./generate.sh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"betrace.dev/kms/example/kmsv1"
)

const payloadBytes = 4 << 20 // the most that a daemon takes unless configured otherwise

// tour makes calls of one tenant, and counts them.
type tour struct {
	kms           kmsv1.KeyManagementServiceClient
	tenant        string
	calls, failed int
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: example TENANT TARGET...")
		os.Exit(2)
	}
	calls, failed := 0, 0
	for _, target := range os.Args[2:] {
		fmt.Println(target)
		conn, err := connect(target, os.Getenv("KMS_TOKEN_FILE"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		t := &tour{kms: kmsv1.NewKeyManagementServiceClient(conn), tenant: os.Args[1]}
		t.call("Health.Check", func(ctx context.Context) (string, error) {
			request := &grpc_health_v1.HealthCheckRequest{Service: "betrace.kms.v1.KeyManagementService"}
			answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, request)
			return answer.GetStatus().String(), err
		})
		t.encryption()
		t.batches()
		t.signatures()
		t.hashes()
		t.coalesced()
		calls, failed = calls+t.calls, failed+t.failed
		_ = conn.Close()
	}
	fmt.Printf("%d calls made, %d failed\n", calls, failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// call makes a call, and prints what came of it.
func (t *tour) call(name string, make func(context.Context) (string, error)) {
	t.calls++
	found, err := make(context.Background())
	if err != nil {
		t.failed++
		reason, _, _ := details(err)
		found = fmt.Sprintf("FAILED: %s %s %s", status.Code(err), reason, status.Convert(err).Message())
	}
	fmt.Printf("  %-16s %s\n", name, found)
}

func check(condition bool, what string) error {
	if condition {
		return nil
	}
	return errors.New(what)
}

func (t *tour) encryption() {
	email := map[string]string{"field": "email"}
	var wrapped, key, sealed []byte
	payload := make([]byte, payloadBytes)
	_, _ = rand.Read(payload)
	t.call("GenerateDataKey", func(ctx context.Context) (string, error) {
		request := &kmsv1.GenerateDataKeyRequest{TenantId: t.tenant, KeySpec: kmsv1.KeySpec_AES_256}
		answer, err := t.kms.GenerateDataKey(ctx, request)
		key, wrapped = answer.GetPlaintext(), answer.GetCiphertextBlob()
		return fmt.Sprintf("%d bytes, and %d wrapped", len(key), len(wrapped)), err
	})
	t.call("Decrypt", func(ctx context.Context) (string, error) {
		answer, err := t.kms.Decrypt(ctx, &kmsv1.DecryptRequest{TenantId: t.tenant, CiphertextBlob: wrapped})
		return "the data key", errors.Join(err, check(bytes.Equal(key, answer.GetPlaintext()), "another key"))
	})
	t.call("Encrypt", func(ctx context.Context) (string, error) {
		request := &kmsv1.EncryptRequest{TenantId: t.tenant, Plaintext: payload, EncryptionContext: email}
		answer, err := t.kms.Encrypt(ctx, request)
		sealed = answer.GetCiphertextBlob()
		return fmt.Sprintf("%d bytes in %d", len(payload), len(sealed)), err
	})
	t.call("Decrypt", func(ctx context.Context) (string, error) {
		request := &kmsv1.DecryptRequest{TenantId: t.tenant, CiphertextBlob: sealed, EncryptionContext: email}
		answer, err := t.kms.Decrypt(ctx, request)
		return "the payload", errors.Join(err, check(bytes.Equal(payload, answer.GetPlaintext()), "another payload"))
	})
	t.call("Decrypt", func(ctx context.Context) (string, error) {
		_, err := t.kms.Decrypt(ctx, &kmsv1.DecryptRequest{TenantId: t.tenant, CiphertextBlob: sealed})
		reason, _, _ := details(err)
		if status.Code(err) != codes.InvalidArgument || reason != "CIPHERTEXT_DOES_NOT_OPEN" {
			return "", fmt.Errorf("without its context it was not refused: %w", err)
		}
		return "refused without its context: " + reason, nil
	})
	t.call("ReEncrypt", func(ctx context.Context) (string, error) {
		request := &kmsv1.ReEncryptRequest{TenantId: t.tenant, CiphertextBlob: wrapped, DestinationEncryptionContext: email}
		answer, err := t.kms.ReEncrypt(ctx, request)
		return fmt.Sprintf("%d bytes", len(answer.GetCiphertextBlob())), err
	})
}

func (t *tour) batches() {
	items := make([]*kmsv1.EncryptBatchItem, 10)
	for at := range items {
		record := map[string]string{"record": fmt.Sprint(at)}
		items[at] = &kmsv1.EncryptBatchItem{Plaintext: fmt.Appendf(nil, "payload %d", at), EncryptionContext: record}
	}
	var sealed []*kmsv1.EncryptBatchResult
	t.call("EncryptBatch", func(ctx context.Context) (found string, err error) {
		sealed, err = inBatch(ctx, items, func(ctx context.Context, part []*kmsv1.EncryptBatchItem) ([]*kmsv1.EncryptBatchResult, error) {
			answer, err := t.kms.EncryptBatch(ctx, &kmsv1.EncryptBatchRequest{TenantId: t.tenant, Items: part})
			return answer.GetResults(), err
		})
		return fmt.Sprintf("%d payloads", len(sealed)), errors.Join(err, refused(sealed))
	})
	t.call("DecryptBatch", func(ctx context.Context) (string, error) {
		ciphertexts := make([]*kmsv1.DecryptBatchItem, len(sealed))
		for at, each := range sealed {
			ciphertexts[at] = &kmsv1.DecryptBatchItem{
				CiphertextBlob: each.GetCiphertextBlob(), EncryptionContext: items[at].GetEncryptionContext(),
			}
		}
		opened, err := inBatch(ctx, ciphertexts, func(ctx context.Context, part []*kmsv1.DecryptBatchItem) ([]*kmsv1.DecryptBatchResult, error) {
			answer, err := t.kms.DecryptBatch(ctx, &kmsv1.DecryptBatchRequest{TenantId: t.tenant, Items: part})
			return answer.GetResults(), err
		})
		err = errors.Join(err, refused(opened))
		for at, each := range opened {
			err = errors.Join(err, check(bytes.Equal(items[at].GetPlaintext(), each.GetPlaintext()), "another payload"))
		}
		return fmt.Sprintf("%d payloads", len(opened)), err
	})
}

// refused returns the status of the first item that was refused, as an error.
func refused[R interface{ GetStatus() *kmsv1.ItemStatus }](results []R) error {
	for _, each := range results {
		if found := each.GetStatus(); found.GetCode() != 0 {
			return status.Errorf(codes.Code(found.GetCode()), "%s: %s", found.GetReason(), found.GetMessage())
		}
	}
	return nil
}

func span(name string) *kmsv1.ComplianceSpan {
	trace, id := make([]byte, 16), make([]byte, 8)
	_, _ = rand.Read(trace)
	_, _ = rand.Read(id)
	framework := "soc2"
	user := &kmsv1.AttributeValue{Value: &kmsv1.AttributeValue_StringValue{StringValue: "alice"}}
	return &kmsv1.ComplianceSpan{
		TraceId: trace, SpanId: id, Name: &name, Framework: &framework,
		Attributes: map[string]*kmsv1.AttributeValue{"user": user},
	}
}

func (t *tour) signatures() {
	signed := &kmsv1.SignedSpan{Span: span("user.login")}
	t.call("SignSpan", func(ctx context.Context) (string, error) {
		answer, err := t.kms.SignSpan(ctx, &kmsv1.SignSpanRequest{TenantId: t.tenant, Span: signed.GetSpan()})
		signed.Signature, signed.KeyId = answer.GetSignature(), answer.GetKeyId()
		return "by key " + signed.GetKeyId(), err
	})
	t.call("VerifySpan", func(ctx context.Context) (string, error) {
		request := &kmsv1.VerifySpanRequest{
			TenantId: t.tenant, Span: signed.GetSpan(), Signature: signed.GetSignature(), KeyId: signed.GetKeyId(),
		}
		answer, err := t.kms.VerifySpan(ctx, request)
		return answer.GetReason().String(), errors.Join(err, check(answer.GetValid(), answer.GetReason().String()))
	})
	batch := []*kmsv1.SignedSpan{{Span: span("one")}, {Span: span("two")}, {Span: span("three")}}
	t.call("SignSpans", func(ctx context.Context) (string, error) {
		request := &kmsv1.SignSpansRequest{TenantId: t.tenant, Mode: kmsv1.SignMode_BATCH_PROOF}
		for _, each := range batch {
			request.Spans = append(request.Spans, each.GetSpan())
		}
		answer, err := t.kms.SignSpans(ctx, request)
		for at, each := range answer.GetResults() {
			batch[at].Signature, batch[at].KeyId, batch[at].Proof = each.GetSignature(), each.GetKeyId(), each.GetProof()
		}
		return "one signature, and proofs", errors.Join(err, refused(answer.GetResults()))
	})
	t.verify(batch)
	t.call("GetPublicKeys", func(ctx context.Context) (string, error) {
		answer, err := t.kms.GetPublicKeys(ctx, &kmsv1.GetPublicKeysRequest{TenantId: t.tenant})
		return fmt.Sprintf("%d", len(answer.GetKeys())), err
	})
}

func (t *tour) verify(spans []*kmsv1.SignedSpan) {
	t.call("VerifySpans", func(ctx context.Context) (string, error) {
		answer, err := t.kms.VerifySpans(ctx, &kmsv1.VerifySpansRequest{TenantId: t.tenant, Spans: spans})
		err = errors.Join(err, refused(answer.GetResults()))
		for _, each := range answer.GetResults() {
			err = errors.Join(err, check(each.GetValid(), each.GetReason().String()))
		}
		return fmt.Sprintf("%d VALID", len(answer.GetResults())), err
	})
}

func (t *tour) hashes() {
	var mac []byte
	t.call("GenerateMac", func(ctx context.Context) (string, error) {
		request := &kmsv1.GenerateMacRequest{TenantId: t.tenant, Purpose: "users.email", Message: []byte("alice@example.com")}
		answer, err := t.kms.GenerateMac(ctx, request)
		mac = answer.GetMac()
		return fmt.Sprintf("%d bytes", len(mac)), err
	})
	t.call("VerifyMac", func(ctx context.Context) (string, error) {
		request := &kmsv1.VerifyMacRequest{
			TenantId: t.tenant, Purpose: "users.email", Message: []byte("alice@example.com"), Mac: mac,
		}
		answer, err := t.kms.VerifyMac(ctx, request)
		return "valid", errors.Join(err, check(answer.GetMacValid(), "not valid"))
	})
}

// coalesced makes a hundred calls at once: they travel as a few batches, and each gets its own result.
func (t *tour) coalesced() {
	batches, signed := 0, make([]*kmsv1.SignedSpan, 100)
	coalescer := &Coalescer[*kmsv1.ComplianceSpan, *kmsv1.SignSpanResult]{
		Timeout: deadline,
		Send: func(ctx context.Context, spans []*kmsv1.ComplianceSpan) ([]*kmsv1.SignSpanResult, []error, error) {
			batches++
			results, err := inBatch(ctx, spans, func(ctx context.Context, part []*kmsv1.ComplianceSpan) ([]*kmsv1.SignSpanResult, error) {
				answer, err := t.kms.SignSpans(ctx, &kmsv1.SignSpansRequest{TenantId: t.tenant, Spans: part})
				return answer.GetResults(), err
			})
			errs := make([]error, len(results))
			for at := range results {
				errs[at] = refused(results[at : at+1])
			}
			return results, errs, err
		},
	}
	t.call("SignSpan x 100", func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		errs := make([]error, len(signed))
		var all sync.WaitGroup
		for at := range signed {
			all.Go(func() {
				signed[at] = &kmsv1.SignedSpan{Span: span(fmt.Sprintf("span %d", at))}
				var result *kmsv1.SignSpanResult
				result, errs[at] = coalescer.Call(ctx, signed[at].GetSpan())
				signed[at].Signature, signed[at].KeyId = result.GetSignature(), result.GetKeyId()
			})
		}
		all.Wait()
		return fmt.Sprintf("in %d batches", batches), errors.Join(errs...)
	})
	t.verify(signed)
}
