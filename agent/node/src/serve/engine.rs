//! The queue of requests and the one thread that computes.
//!
//! ```text
//! request ──submit──▶ queue (bounded by tokens) ──batch of ≤ budget tokens──▶ compute thread ──▶ answer
//! ```
//!
//! A batch begins the moment the thread is free; nothing waits for company. Requests take turns, one text each, so
//! that a request of 2,000 texts delays its neighbours by batches, not by its whole length; and each request is the
//! first in turn again and again, so a text longer than the budget runs alone instead of waiting for ever. A request
//! whose caller has gone is dropped before it is computed.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use motley_ops::TokenizedText;
use tokio::sync::oneshot;

use super::metrics::Metrics;

/// Turns texts into vectors, row by row in one list.
pub(crate) type Compute = Box<dyn FnMut(&[TokenizedText]) -> Result<Vec<f32>, String> + Send>;

/// Vectors of one request, row by row; or why there are none.
pub(crate) type Answer = Result<Vec<f32>, String>;

/// Sizes of the queue and its batches, in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineLimits {
    pub(crate) token_budget: usize,
    pub(crate) queue_tokens_max: usize,
}

/// Retry hints stay within these: shorter ones are knocked back at once, longer ones are ignored by clients (above
/// two minutes the OpenAI client does not retry at all).
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// A batch that takes longer means a device that hangs: [`Engine::is_alive`] turns false.
const BATCH_SECONDS_MAX: u64 = 120;

/// The queue and its thread.
#[derive(Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    limits: EngineLimits,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Pending>,
    /// Tokens of texts not yet computed.
    tokens: usize,
    tokens_per_second: f64,
    closed: bool,
    /// The compute thread has ended by a panic.
    failed: bool,
    batch_began: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    texts: Vec<TokenizedText>,
    /// Texts handed to a batch so far.
    taken: usize,
    done: usize,
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<Answer>,
    arrived: Instant,
}

/// The texts of one batch, and whose they are.
#[derive(Debug, Default)]
struct Batch {
    texts: Vec<TokenizedText>,
    /// Position of the request in the queue; requests only leave the queue on the compute thread.
    owners: Vec<(usize, usize)>,
    tokens: usize,
}

impl Engine {
    /// Starts the compute thread.
    pub(crate) fn start(mut compute: Compute, limits: EngineLimits, metrics: Arc<Metrics>) -> Engine {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { tokens_per_second: 5000.0, ..Queue::default() }),
            arrived: Condvar::new(),
            limits,
            metrics,
        });
        let thread_shared = Arc::clone(&shared);
        std::thread::spawn(move || while thread_shared.run_batch(&mut compute) {});
        Engine { shared }
    }

    /// Queues a request; the receiver gets its vectors.
    ///
    /// # Errors
    /// The queue is full: milliseconds after which it should have room. A request larger than the whole queue is
    /// taken when nothing waits.
    pub(crate) fn submit(&self, texts: Vec<TokenizedText>) -> Result<oneshot::Receiver<Answer>, u64> {
        let tokens: usize = texts.iter().map(|text| text.ids.len()).sum();
        let mut queue = self.shared.lock();
        if queue.tokens > 0 && queue.tokens + tokens > self.shared.limits.queue_tokens_max {
            return Err(queue.retry_after_ms());
        }
        let (reply, receiver) = oneshot::channel();
        queue.tokens += tokens;
        self.shared.metrics.queue_tokens.set(queue.tokens as i64);
        let vectors = vec![Vec::new(); texts.len()];
        queue.requests.push_back(Pending {
            texts,
            taken: 0,
            done: 0,
            vectors,
            reply,
            arrived: Instant::now(),
        });
        self.shared.arrived.notify_one();
        Ok(receiver)
    }

    /// Milliseconds after which the queue should be empty.
    pub(crate) fn retry_after_ms(&self) -> u64 {
        self.shared.lock().retry_after_ms()
    }

    /// Whether the queue has room for a text.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.lock().tokens < self.shared.limits.queue_tokens_max
    }

    /// False once the thread has ended by itself or hangs in a batch.
    pub(crate) fn is_alive(&self) -> bool {
        let queue = self.shared.lock();
        let hangs = queue.batch_began.is_some_and(|began| began.elapsed().as_secs() > BATCH_SECONDS_MAX);
        !queue.failed && !hangs
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_one();
    }
}

impl Shared {
    /// A panic while the lock is held leaves plain data behind, nothing half-done that matters to others.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work, computes one batch, answers. False when the thread is to end.
    fn run_batch(&self, compute: &mut Compute) -> bool {
        let Some(batch) = self.next_batch() else { return false };
        self.metrics.batch(batch.tokens);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| compute(&batch.texts)));
        let mut queue = self.lock();
        queue.batch_began = None;
        queue.tokens = queue.tokens.saturating_sub(batch.tokens);
        match result {
            Ok(answer) => {
                queue.learn_speed(batch.tokens, began.elapsed());
                queue.deliver(&batch, answer);
            }
            Err(_) => {
                queue.failed = true;
                queue.tokens = 0;
                for request in queue.requests.drain(..) {
                    let _ = request.reply.send(Err("the compute thread has failed".to_owned()));
                }
            }
        }
        self.metrics.queue_tokens.set(queue.tokens as i64);
        !queue.failed
    }

    /// The next batch; nothing when the engine is closed and empty.
    fn next_batch(&self) -> Option<Batch> {
        let mut queue = self.lock();
        loop {
            queue.drop_abandoned();
            if !queue.requests.is_empty() {
                break;
            }
            if queue.closed {
                return None;
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.batch_began = Some(Instant::now());
        Some(queue.fill_batch(self.limits.token_budget, |wait| self.metrics.waited(wait)))
    }
}

impl Queue {
    fn retry_after_ms(&self) -> u64 {
        let milliseconds = self.tokens as f64 / self.tokens_per_second.max(1.0) * 1000.0;
        (milliseconds as u64).clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end())
    }

    fn drop_abandoned(&mut self) {
        let mut freed = 0;
        self.requests.retain(|request| {
            let keep = !request.reply.is_closed();
            if !keep {
                freed += request.texts[request.taken..].iter().map(|text| text.ids.len()).sum::<usize>();
            }
            keep
        });
        self.tokens = self.tokens.saturating_sub(freed);
    }

    /// Takes texts in turns until no request's next text fits; the first text always does.
    fn fill_batch(&mut self, budget: usize, waited: impl Fn(Duration)) -> Batch {
        // The request that came first last time goes to the end of the turn.
        self.requests.rotate_left(1);
        let mut batch = Batch::default();
        let mut any = true;
        while any {
            any = false;
            for (position, request) in self.requests.iter_mut().enumerate() {
                let Some(text) = request.texts.get_mut(request.taken) else { continue };
                let tokens = text.ids.len();
                if !batch.texts.is_empty() && batch.tokens + tokens > budget {
                    continue;
                }
                if request.taken == 0 {
                    waited(request.arrived.elapsed());
                }
                batch.tokens += tokens;
                batch.owners.push((position, request.taken));
                batch.texts.push(std::mem::take(text));
                request.taken += 1;
                any = true;
            }
        }
        batch
    }

    /// Keeps each text's vector and answers the requests that are complete. A vector that is not finite fails its own
    /// request alone: which texts run together is chance.
    fn deliver(&mut self, batch: &Batch, answer: Answer) {
        let width = answer.as_ref().map_or(0, |vectors| vectors.len() / batch.texts.len().max(1));
        let mut failed = BTreeMap::new();
        for (row, &(position, text)) in batch.owners.iter().enumerate() {
            let Some(request) = self.requests.get_mut(position) else { continue };
            request.done += 1;
            match &answer {
                Ok(vectors) => {
                    let vector = &vectors[row * width..(row + 1) * width];
                    request.vectors[text] = vector.to_vec();
                    if !vector.iter().all(|value| value.is_finite()) {
                        failed.insert(position, format!("the vector of input {text} holds NaN or infinity"));
                    }
                }
                Err(message) => {
                    failed.insert(position, message.clone());
                }
            }
        }
        let mut waiting = VecDeque::with_capacity(self.requests.len());
        for (position, request) in std::mem::take(&mut self.requests).into_iter().enumerate() {
            if let Some(message) = failed.remove(&position) {
                let rest = request.texts[request.taken..].iter().map(|text| text.ids.len()).sum::<usize>();
                self.tokens = self.tokens.saturating_sub(rest);
                let _ = request.reply.send(Err(message));
            } else if request.done == request.texts.len() {
                let _ = request.reply.send(Ok(request.vectors.concat()));
            } else {
                waiting.push_back(request);
            }
        }
        self.requests = waiting;
    }

    /// A running mean, so that retry hints follow the load.
    fn learn_speed(&mut self, tokens: usize, took: Duration) {
        let speed = tokens as f64 / took.as_secs_f64().max(1e-6);
        self.tokens_per_second += 0.1 * (speed - self.tokens_per_second);
    }
}
