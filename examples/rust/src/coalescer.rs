//! Makes one batch of the calls that come while another batch is on its way.

use tokio::sync::{mpsc, oneshot};
use tonic::Status;

const MAX_ITEMS: usize = 1000;

type Call<I, O> = (I, oneshot::Sender<Result<O, Status>>);

#[derive(Clone)]
pub struct Coalescer<I, O> {
    calls: mpsc::UnboundedSender<Call<I, O>>,
}

impl<I: Send + 'static, O: Send + 'static> Coalescer<I, O> {
    /// `send` makes a batch call, and returns an outcome for each item, or an error of the whole call. It is dropped with
    /// the last clone of the coalescer.
    pub fn new<F>(mut send: impl FnMut(Vec<I>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<Result<O, Status>>, Status>> + Send,
    {
        let (calls, mut waiting) = mpsc::unbounded_channel::<Call<I, O>>();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, MAX_ITEMS).await > 0 {
                let (items, callers): (Vec<I>, Vec<_>) = batch.drain(..).unzip();
                match send(items).await {
                    Ok(results) => callers
                        .into_iter()
                        .zip(results)
                        .for_each(|(caller, result)| drop(caller.send(result))),
                    Err(error) => callers
                        .into_iter()
                        .for_each(|caller| drop(caller.send(Err(error.clone())))),
                }
            }
        });
        Self { calls }
    }

    pub async fn call(&self, item: I) -> Result<O, Status> {
        let (caller, result) = oneshot::channel();
        let sent = self.calls.send((item, caller));
        sent.map_err(|_| Status::internal("the coalescer has ended"))?;
        result
            .await
            .unwrap_or_else(|_| Err(Status::internal("the coalescer has ended")))
    }
}
