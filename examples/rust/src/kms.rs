//! A client of the daemon for tonic: limits, deadlines, retries, tokens and the details of errors.

use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::pb::ItemStatus;
use crate::pb::key_management_service_client::KeyManagementServiceClient;

/// Of a call, its repetitions included.
pub const DEADLINE: Duration = Duration::from_secs(10);
const MAX_ATTEMPTS: u32 = 3;
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
/// An answer is longer than the payload of 4 MiB in it; the default is 4,194,304 bytes.
const RECEIVE_LIMIT: usize = 8 << 20;

pub type Client = KeyManagementServiceClient<InterceptedService<Channel, Token>>;

/// Connects to host:port or unix:/path, and sends the token of a file, if there is one.
pub fn connect(target: &str, token_file: Option<String>) -> Result<(Channel, Client), tonic::transport::Error> {
    let uri = if target.starts_with("unix:") {
        target.to_string()
    } else {
        format!("http://{target}")
    };
    let channel = Endpoint::from_shared(uri)?.connect_lazy();
    let client = KeyManagementServiceClient::with_interceptor(channel.clone(), Token(token_file));
    Ok((channel, client.max_decoding_message_size(RECEIVE_LIMIT)))
}

/// Reads the first token of a file for each call, so that a new token is sent from then on.
#[derive(Clone)]
pub struct Token(Option<String>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(file) = &self.0 {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Status::unauthenticated(format!("the token file cannot be read: {error}")))?;
            let value = bearer(&text).ok_or_else(|| Status::unauthenticated("the token file has no token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn bearer(text: &str) -> Option<MetadataValue<Ascii>> {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))?;
    format!("Bearer {}", line.split_whitespace().last()?).parse().ok()
}

/// Makes a call, and repeats it where another try may succeed: tonic has no retry policy of its own. What is UNAVAILABLE
/// gets three attempts; what is RESOURCE_EXHAUSTED is repeated until the deadline, as long after as RetryInfo says, and
/// twice as long each further time.
pub async fn call<Q: Clone, R, F>(request: Q, mut send: impl FnMut(Request<Q>) -> F) -> Result<R, Status>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    let end = Instant::now() + DEADLINE;
    for repetition in 0.. {
        let mut attempted = Request::new(request.clone());
        attempted.set_timeout(end.saturating_duration_since(Instant::now()));
        let status = match send(attempted).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        match delay(&status, repetition) {
            Some(delay) if pause(delay * 2u32.pow(repetition), end, &reason(&status)).await => continue,
            _ => return Err(status),
        }
    }
    unreachable!()
}

/// Returns for how long to wait before the first repetition, where another one may succeed.
fn delay(status: &Status, repetition: u32) -> Option<Duration> {
    match status.code() {
        Code::ResourceExhausted => status.get_details_retry_info()?.retry_delay,
        Code::Unavailable if repetition + 1 < MAX_ATTEMPTS => Some(INITIAL_BACKOFF),
        _ => None,
    }
}

/// Waits, unless the deadline comes first.
async fn pause(delay: Duration, end: Instant, reason: &str) -> bool {
    let waits = Instant::now() + delay < end;
    if waits {
        println!("  waits {delay:?}: {reason}");
        tokio::time::sleep(delay).await;
    }
    waits
}

/// Returns the daemon's name for an error.
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// The outcome of one item of a batch.
pub trait Outcome: Clone {
    fn status(&self) -> Option<&ItemStatus>;
}

/// Sends items, and again those that were refused with a retry delay: not the whole batch.
pub async fn in_batch<I: Clone, R: Outcome, F>(items: &[I], mut send: impl FnMut(Vec<I>) -> F) -> Result<Vec<R>, Status>
where
    F: Future<Output = Result<Vec<R>, Status>>,
{
    let end = Instant::now() + DEADLINE;
    let mut results: Vec<Option<R>> = vec![None; items.len()];
    let mut waiting: Vec<usize> = (0..items.len()).collect();
    for repetition in 0.. {
        let answers = send(waiting.iter().map(|&index| items[index].clone()).collect()).await?;
        let mut again = Vec::new();
        let (mut longest, mut why) = (Duration::ZERO, String::new());
        for (index, answer) in waiting.into_iter().zip(answers) {
            if let Some(status) = answer.status().filter(|status| status.retry_delay.is_some()) {
                let delay = status
                    .retry_delay
                    .and_then(|delay| delay.try_into().ok())
                    .unwrap_or_default();
                longest = longest.max(delay);
                why = status.reason.clone();
                again.push(index);
            }
            results[index] = Some(answer);
        }
        waiting = again;
        if waiting.is_empty() || !pause(longest * 2u32.pow(repetition), end, &why).await {
            break;
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// Fails with the status of the first item that was refused.
pub fn accepted<R: Outcome>(results: &[R]) -> Result<(), Status> {
    match results
        .iter()
        .filter_map(Outcome::status)
        .find(|status| status.code != 0)
    {
        Some(status) => Err(Status::new(
            Code::from(status.code),
            format!("{}: {}", status.reason, status.message),
        )),
        None => Ok(()),
    }
}
