//! A scheduler that is played: answers as the real one does, keeps all it hears, can be cut off and silenced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Span;
use motley_scheduler_core::wire::VERSION;
use motley_scheduler_core::wire::agent::{AttemptReport, FromAgent, ToAgent};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::uplink::{Answer, BlobStore, Connection, LocalBlob, Uplink, UplinkError};

pub(super) struct Played {
    heard: Arc<Mutex<Heard>>,
    renewal_due: bool,
}

#[derive(Default)]
struct Heard {
    messages: Vec<FromAgent>,
    log: Vec<u8>,
    blobs: BTreeMap<ContentHash, Vec<u8>>,
    /// In the order of their arrival.
    stored: Vec<ContentHash>,
    to_agent: Option<mpsc::Sender<ToAgent>>,
    connection: Option<AbortHandle>,
    down: bool,
    /// Does not answer end reports.
    forgetful: bool,
    renewed: Option<Vec<u8>>,
}

impl Played {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Played { heard: Arc::default(), renewal_due: false })
    }

    pub(super) fn with_certificate_to_renew() -> Arc<Self> {
        Arc::new(Played { heard: Arc::default(), renewal_due: true })
    }

    pub(super) fn say(&self, message: ToAgent) {
        self.lock().to_agent.as_ref().expect("the agent is connected").try_send(message).unwrap();
    }

    pub(super) fn is_connected(&self) -> bool {
        self.lock().to_agent.is_some()
    }

    pub(super) fn received(&self) -> Vec<FromAgent> {
        self.lock().messages.clone()
    }

    pub(super) fn forget_messages(&self) {
        self.lock().messages.clear();
    }

    pub(super) fn log(&self) -> String {
        String::from_utf8(self.lock().log.clone()).unwrap()
    }

    pub(super) fn stored(&self) -> Vec<ContentHash> {
        self.lock().stored.clone()
    }

    pub(super) fn blob(&self, hash: ContentHash) -> Vec<u8> {
        self.lock().blobs[&hash].clone()
    }

    pub(super) fn add_blob(&self, bytes: &[u8]) -> ContentHash {
        let hash = ContentHash(Sha256::digest(bytes).into());
        self.lock().blobs.insert(hash, bytes.to_vec());
        hash
    }

    pub(super) fn renewed(&self) -> Option<Vec<u8>> {
        self.lock().renewed.clone()
    }

    pub(super) fn forget_ends(&self, forgetful: bool) {
        self.lock().forgetful = forgetful;
    }

    /// Breaks the connection; new ones are accepted only while `down` is not set.
    pub(super) fn cut(&self, down: bool) {
        let mut heard = self.lock();
        heard.down = down;
        heard.to_agent = None;
        if let Some(connection) = heard.connection.take() {
            connection.abort();
        }
    }

    pub(super) fn come_back(&self) {
        self.lock().down = false;
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }
}

impl Heard {
    fn answer(&mut self, message: &FromAgent) -> Vec<ToAgent> {
        match message {
            FromAgent::Report { attempts, .. } | FromAgent::ReportDevices { attempts, .. } => {
                let span = Span { milliseconds: 100 };
                let keep_running = Span::from_seconds(600);
                vec![
                    ToAgent::Welcome { lease: Span::from_seconds(30), beat: span, keep_running },
                    renewed(attempts),
                ]
            }
            FromAgent::Beat { attempts } => vec![renewed(attempts)],
            &FromAgent::Log { attempt, epoch, offset, ref bytes } => {
                // As the real one: only what lies behind the end is written, and a gap is answered with the end.
                let length = self.log.len() as u64;
                if offset <= length {
                    let known = (length - offset) as usize;
                    self.log.extend_from_slice(bytes.get(known..).unwrap_or_default());
                }
                vec![ToAgent::LogStored { attempt, epoch, offset: self.log.len() as u64 }]
            }
            &FromAgent::Ended { attempt, epoch, .. } if !self.forgetful => {
                vec![ToAgent::EndRecorded { attempt, epoch }]
            }
            FromAgent::RenewCertificate { certificate_request } => {
                vec![ToAgent::Certificate { certificate: certificate_request.clone(), valid_seconds: 60 }]
            }
            _ => Vec::new(),
        }
    }
}

fn renewed(attempts: &[AttemptReport]) -> ToAgent {
    let attempts = attempts.iter().map(|report| (report.attempt, report.epoch)).collect();
    ToAgent::LeaseRenewed { attempts, lease: Span::from_seconds(30) }
}

impl Uplink for Played {
    fn connect(&self) -> Answer<'_, Connection> {
        Box::pin(async {
            if self.lock().down {
                return Err(UplinkError::Lost("played to be down".into()));
            }
            let (outbox, mut from_agent) = mpsc::channel::<FromAgent>(64);
            let (to_agent, inbox) = mpsc::channel(64);
            let heard = Arc::clone(&self.heard);
            let answers = to_agent.clone();
            let task = tokio::spawn(async move {
                while let Some(message) = from_agent.recv().await {
                    let replies = {
                        let mut heard = heard.lock().unwrap();
                        heard.messages.push(message.clone());
                        heard.answer(&message)
                    };
                    for reply in replies {
                        if answers.send(reply).await.is_err() {
                            return;
                        }
                    }
                }
            });
            let mut heard = self.lock();
            heard.to_agent = Some(to_agent);
            heard.connection = Some(task.abort_handle());
            let blobs = Arc::new(PlayedBlobs { heard: Arc::clone(&self.heard) });
            Ok(Connection { outbox, inbox, blobs, version: VERSION })
        })
    }

    fn renew_at(&self) -> Option<SystemTime> {
        let waiting = self.renewal_due && self.lock().renewed.is_none();
        waiting.then(|| SystemTime::now() - Duration::from_secs(1))
    }

    fn begin_renewal(&self) -> Result<Vec<u8>, UplinkError> {
        Ok(b"a request".to_vec())
    }

    fn finish_renewal(&self, certificate: &[u8]) -> Result<(), UplinkError> {
        self.lock().renewed = Some(certificate.to_vec());
        Ok(())
    }
}

struct PlayedBlobs {
    heard: Arc<Mutex<Heard>>,
}

impl PlayedBlobs {
    fn up(&self) -> Result<MutexGuard<'_, Heard>, UplinkError> {
        let heard = self.heard.lock().unwrap();
        if heard.down { Err(UplinkError::Lost("played to be down".into())) } else { Ok(heard) }
    }
}

impl BlobStore for PlayedBlobs {
    fn missing(&self, hashes: Vec<ContentHash>) -> Answer<'_, Vec<ContentHash>> {
        Box::pin(async move {
            let heard = self.up()?;
            Ok(hashes.into_iter().filter(|hash| !heard.blobs.contains_key(hash)).collect())
        })
    }

    fn put(&self, blob: LocalBlob) -> Answer<'_, ()> {
        Box::pin(async move {
            let bytes = std::fs::read(&blob.path).map_err(|error| UplinkError::Refused(error.to_string()))?;
            if ContentHash(Sha256::digest(&bytes).into()) != blob.hash {
                return Err(UplinkError::Refused("wrong contents".into()));
            }
            let mut heard = self.up()?;
            heard.blobs.insert(blob.hash, bytes);
            heard.stored.push(blob.hash);
            Ok(())
        })
    }

    fn get<'a>(&'a self, hash: ContentHash, path: &'a Path) -> Answer<'a, ()> {
        Box::pin(async move {
            let bytes = self.up()?.blobs.get(&hash).cloned();
            let bytes = bytes.ok_or_else(|| UplinkError::Refused(format!("no blob {hash} is stored")))?;
            std::fs::write(path, bytes).map_err(|error| UplinkError::Refused(error.to_string()))
        })
    }
}
