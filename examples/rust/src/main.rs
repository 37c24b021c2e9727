//! Makes the main calls of a betrace-kms daemon: cargo run -- TENANT TARGET...
//!
//! A target is host:port or unix:/path. KMS_TOKEN_FILE names the file of a bearer token, where the daemon wants one.

mod coalescer;
mod kms;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::coalescer::Coalescer;
use crate::kms::{Client, Outcome, accepted, call, connect, in_batch, reason};

pub mod pb {
    tonic::include_proto!("betrace.kms.v1");
}

/// The most that a daemon takes unless configured otherwise.
const PAYLOAD_BYTES: usize = 4 << 20;

macro_rules! outcomes {
    ($($result:ty),*) => {$(
        impl Outcome for $result {
            fn status(&self) -> Option<&pb::ItemStatus> {
                self.status.as_ref()
            }
        }
    )*};
}
outcomes!(
    pb::EncryptBatchResult,
    pb::DecryptBatchResult,
    pb::SignSpanResult,
    pb::VerifySpanResult
);

/// Makes a call of the service by its name and request.
macro_rules! rpc {
    ($client:expr, $method:ident, $request:expr) => {{
        let client = $client.clone();
        call($request, move |request| {
            let mut client = client.clone();
            async move { client.$method(request).await }
        })
        .await
    }};
}

struct Tour {
    kms: Client,
    tenant: String,
    calls: u32,
    failed: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(tenant) = arguments.next().filter(|_| arguments.len() > 0) else {
        eprintln!("usage: betrace-kms-example TENANT TARGET...");
        return ExitCode::from(2);
    };
    let (mut calls, mut failed) = (0, 0);
    for target in arguments {
        println!("{target}");
        let (channel, kms) = match connect(&target, std::env::var("KMS_TOKEN_FILE").ok()) {
            Ok(connected) => connected,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        let mut tour = Tour {
            kms,
            tenant: tenant.clone(),
            calls: 0,
            failed: 0,
        };
        let request = HealthCheckRequest {
            service: "betrace.kms.v1.KeyManagementService".to_string(),
        };
        let health = call(request, |request| {
            let mut client = HealthClient::new(channel.clone());
            async move { client.check(request).await }
        });
        tour.note(
            "Health.Check",
            health.await.map(|answer| answer.status().as_str_name().to_string()),
        );
        tour.encryption().await;
        tour.batches().await;
        tour.signatures().await;
        tour.hashes().await;
        tour.coalesced().await;
        calls += tour.calls;
        failed += tour.failed;
    }
    println!("{calls} calls made, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn context(name: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(name.to_string(), value.to_string())])
}

fn check(condition: bool, found: String) -> Result<String, Status> {
    if condition {
        Ok(found)
    } else {
        Err(Status::internal(format!("not as expected: {found}")))
    }
}

impl Tour {
    /// Counts a call, and prints what came of it.
    fn note(&mut self, name: &str, found: Result<String, Status>) {
        self.calls += 1;
        let line = found.unwrap_or_else(|status| {
            self.failed += 1;
            format!("FAILED: {:?} {} {}", status.code(), reason(&status), status.message())
        });
        println!("  {name:16} {line}");
    }

    async fn encryption(&mut self) {
        let (tenant_id, email) = (self.tenant.clone(), context("field", "email"));
        let request = pb::GenerateDataKeyRequest {
            tenant_id: tenant_id.clone(),
            key_spec: pb::KeySpec::Aes256.into(),
            ..Default::default()
        };
        let key = rpc!(self.kms, generate_data_key, request);
        let found = key.as_ref().map(|key| {
            format!(
                "{} bytes, and {} wrapped",
                key.plaintext.len(),
                key.ciphertext_blob.len()
            )
        });
        self.note("GenerateDataKey", found.map_err(Clone::clone));
        let key = key.unwrap_or_default();

        let mut request = pb::DecryptRequest {
            tenant_id: tenant_id.clone(),
            ciphertext_blob: key.ciphertext_blob.clone(),
            ..Default::default()
        };
        let opened = rpc!(self.kms, decrypt, request.clone());
        self.note(
            "Decrypt",
            opened.and_then(|opened| check(opened.plaintext == key.plaintext, "the data key".into())),
        );

        let plaintext: Vec<u8> = (0..PAYLOAD_BYTES).map(|at| (at % 251) as u8).collect();
        let encrypt = pb::EncryptRequest {
            tenant_id: tenant_id.clone(),
            plaintext: plaintext.clone(),
            encryption_context: email.clone(),
        };
        let sealed = rpc!(self.kms, encrypt, encrypt);
        let found = sealed
            .as_ref()
            .map(|sealed| format!("{PAYLOAD_BYTES} bytes in {}", sealed.ciphertext_blob.len()));
        self.note("Encrypt", found.map_err(Clone::clone));

        request.ciphertext_blob = sealed.unwrap_or_default().ciphertext_blob;
        request.encryption_context = email.clone();
        let opened = rpc!(self.kms, decrypt, request.clone());
        self.note(
            "Decrypt",
            opened.and_then(|opened| check(opened.plaintext == plaintext, "the payload".into())),
        );

        request.encryption_context.clear();
        let refused = rpc!(self.kms, decrypt, request)
            .err()
            .unwrap_or(Status::ok("it was opened"));
        let expected = refused.code() == Code::InvalidArgument && reason(&refused) == "CIPHERTEXT_DOES_NOT_OPEN";
        self.note(
            "Decrypt",
            check(expected, format!("refused without its context: {}", reason(&refused))),
        );

        let request = pb::ReEncryptRequest {
            tenant_id,
            ciphertext_blob: key.ciphertext_blob,
            destination_encryption_context: email,
            ..Default::default()
        };
        let sealed = rpc!(self.kms, re_encrypt, request);
        self.note(
            "ReEncrypt",
            sealed.map(|sealed| format!("{} bytes", sealed.ciphertext_blob.len())),
        );
    }

    async fn batches(&mut self) {
        let (kms, tenant) = (self.kms.clone(), self.tenant.clone());
        let items: Vec<_> = (0..10)
            .map(|at| pb::EncryptBatchItem {
                plaintext: format!("payload {at}").into_bytes(),
                encryption_context: context("record", &at.to_string()),
            })
            .collect();
        let sealed = in_batch(&items, |items| {
            let (kms, request) = (
                kms.clone(),
                pb::EncryptBatchRequest {
                    tenant_id: tenant.clone(),
                    items,
                },
            );
            async move { rpc!(kms, encrypt_batch, request).map(|answer| answer.results) }
        });
        let sealed = sealed.await.and_then(|sealed| accepted(&sealed).map(|()| sealed));
        let found = sealed.as_ref().map(|sealed| format!("{} payloads", sealed.len()));
        self.note("EncryptBatch", found.map_err(Clone::clone));

        let ciphertexts: Vec<_> = sealed
            .unwrap_or_default()
            .into_iter()
            .zip(&items)
            .map(|(sealed, item)| pb::DecryptBatchItem {
                ciphertext_blob: sealed.ciphertext_blob,
                encryption_context: item.encryption_context.clone(),
            })
            .collect();
        let opened = in_batch(&ciphertexts, |items| {
            let (kms, request) = (
                kms.clone(),
                pb::DecryptBatchRequest {
                    tenant_id: tenant.clone(),
                    items,
                },
            );
            async move { rpc!(kms, decrypt_batch, request).map(|answer| answer.results) }
        });
        let opened = opened.await.and_then(|opened| accepted(&opened).map(|()| opened));
        let found = opened.and_then(|opened| {
            let same = opened
                .iter()
                .map(|each| &each.plaintext)
                .eq(items.iter().map(|item| &item.plaintext));
            check(same, format!("{} payloads", opened.len()))
        });
        self.note("DecryptBatch", found);
    }

    async fn signatures(&mut self) {
        let tenant_id = self.tenant.clone();
        let one = span("user.login", 1);
        let request = pb::SignSpanRequest {
            tenant_id: tenant_id.clone(),
            span: Some(one.clone()),
            ..Default::default()
        };
        let signed = rpc!(self.kms, sign_span, request);
        let found = signed.as_ref().map(|signed| format!("by key {}", signed.key_id));
        self.note("SignSpan", found.map_err(Clone::clone));

        let signed = signed.unwrap_or_default();
        let request = pb::VerifySpanRequest {
            tenant_id: tenant_id.clone(),
            span: Some(one),
            signature: signed.signature,
            key_id: signed.key_id,
            proof: None,
        };
        let verdict = rpc!(self.kms, verify_span, request);
        self.note(
            "VerifySpan",
            verdict.and_then(|found| check(found.valid, found.reason().as_str_name().into())),
        );

        let spans: Vec<_> = (2..5).map(|number| span("batch", number)).collect();
        let request = pb::SignSpansRequest {
            tenant_id: tenant_id.clone(),
            spans: spans.clone(),
            mode: pb::SignMode::BatchProof.into(),
            ..Default::default()
        };
        let signed =
            rpc!(self.kms, sign_spans, request).and_then(|answer| accepted(&answer.results).map(|()| answer.results));
        let found = signed.as_ref().map(|_| "one signature, and proofs".to_string());
        self.note("SignSpans", found.map_err(Clone::clone));

        self.verify(spans, signed.unwrap_or_default()).await;

        let keys = rpc!(self.kms, get_public_keys, pb::GetPublicKeysRequest { tenant_id });
        self.note("GetPublicKeys", keys.map(|found| found.keys.len().to_string()));
    }

    async fn verify(&mut self, spans: Vec<pb::ComplianceSpan>, signed: Vec<pb::SignSpanResult>) {
        let batch = signed.into_iter().zip(spans).map(|(signed, span)| pb::SignedSpan {
            span: Some(span),
            signature: signed.signature,
            key_id: signed.key_id,
            proof: signed.proof,
        });
        let request = pb::VerifySpansRequest {
            tenant_id: self.tenant.clone(),
            spans: batch.collect(),
        };
        let verdicts = rpc!(self.kms, verify_spans, request);
        let found = verdicts.and_then(|found| {
            accepted(&found.results)?;
            check(
                found.results.iter().all(|each| each.valid),
                format!("{} VALID", found.results.len()),
            )
        });
        self.note("VerifySpans", found);
    }

    async fn hashes(&mut self) {
        let (tenant_id, purpose, message) = (
            self.tenant.clone(),
            "users.email".to_string(),
            b"alice@example.com".to_vec(),
        );
        let request = pb::GenerateMacRequest {
            tenant_id: tenant_id.clone(),
            purpose: purpose.clone(),
            message: message.clone(),
            bits: 0,
        };
        let made = rpc!(self.kms, generate_mac, request);
        let found = made.as_ref().map(|made| format!("{} bytes", made.mac.len()));
        self.note("GenerateMac", found.map_err(Clone::clone));
        let request = pb::VerifyMacRequest {
            tenant_id,
            purpose,
            message,
            mac: made.unwrap_or_default().mac,
            bits: 0,
        };
        let verified = rpc!(self.kms, verify_mac, request);
        self.note(
            "VerifyMac",
            verified.and_then(|found| check(found.mac_valid, "valid".into())),
        );
    }

    /// Makes a hundred calls at once: they travel as a few batches, and each gets its own result.
    async fn coalesced(&mut self) {
        let (kms, tenant, batches) = (self.kms.clone(), self.tenant.clone(), Arc::new(AtomicU32::new(0)));
        let counted = batches.clone();
        let coalescer = Coalescer::new(move |spans: Vec<pb::ComplianceSpan>| {
            let (kms, tenant) = (kms.clone(), tenant.clone());
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let results = in_batch(&spans, |spans| {
                    let request = pb::SignSpansRequest {
                        tenant_id: tenant.clone(),
                        spans,
                        ..Default::default()
                    };
                    let kms = kms.clone();
                    async move { rpc!(kms, sign_spans, request).map(|answer| answer.results) }
                });
                Ok(results
                    .await?
                    .into_iter()
                    .map(|each| accepted(std::slice::from_ref(&each)).map(|()| each))
                    .collect())
            }
        });
        let spans: Vec<_> = (10..110).map(|number| span("coalesced", number)).collect();
        let calls: Vec<_> = spans
            .iter()
            .map(|span| {
                let (coalescer, span) = (coalescer.clone(), span.clone());
                tokio::spawn(async move { coalescer.call(span).await })
            })
            .collect();
        let mut signed = Vec::new();
        let mut found = Ok(());
        for call in calls {
            let result = call
                .await
                .unwrap_or_else(|error| Err(Status::internal(error.to_string())));
            found = found.and(result.map(|result| signed.push(result)));
        }
        self.note(
            "SignSpan x 100",
            found.map(|()| format!("in {} batches", batches.load(Ordering::Relaxed))),
        );
        self.verify(spans, signed).await;
    }
}

/// Returns a span whose ids are a number: real ones are random.
fn span(name: &str, number: u64) -> pb::ComplianceSpan {
    let user = pb::AttributeValue {
        value: Some(pb::attribute_value::Value::StringValue("alice".to_string())),
    };
    pb::ComplianceSpan {
        trace_id: u128::from(number).to_be_bytes().to_vec(),
        span_id: number.to_be_bytes().to_vec(),
        name: Some(name.to_string()),
        framework: Some("soc2".to_string()),
        attributes: HashMap::from([("user".to_string(), user)]),
        ..Default::default()
    }
}
