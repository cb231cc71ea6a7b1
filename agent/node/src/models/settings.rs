//! Node configuration for models: hub addresses, tokens, cache, the pip command. Read once at start.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hub::{Api, Hub};

/// A transfer that brings no byte for this long has stalled and is tried again where it stopped; longer than any
/// pause of a slow but living connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where models come from on this node. What a job document means never depends on it, only where bytes are fetched.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSettings {
    pub hub_endpoint: String,
    /// Never logged.
    pub hub_token: Option<String>,
    pub modelscope_endpoint: String,
    pub modelscope_token: Option<String>,
    /// Shared by all jobs of the node.
    pub cache: PathBuf,
    /// The machine's pip; absent: `pip`, `pip3`, `python3 -m pip` are tried.
    pub pip: Option<Vec<String>>,
    /// [`IDLE_TIMEOUT`], except in tests.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Duration,
}

fn idle_timeout() -> Duration {
    IDLE_TIMEOUT
}

impl ModelSettings {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `MODELSCOPE_ENDPOINT` and `MODELSCOPE_API_TOKEN`.
    pub fn from_environment(cache: PathBuf) -> Self {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        ModelSettings {
            hub_endpoint: read("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            hub_token: read("HF_TOKEN"),
            modelscope_endpoint: read("MODELSCOPE_ENDPOINT")
                .unwrap_or_else(|| "https://modelscope.cn".into()),
            modelscope_token: read("MODELSCOPE_API_TOKEN"),
            cache,
            pip: None,
            idle_timeout: IDLE_TIMEOUT,
        }
    }

    pub(super) fn hub(&self) -> Hub {
        Hub::new(Api::HuggingFace, &self.hub_endpoint, self.hub_token.clone(), self.idle_timeout)
    }

    pub(super) fn modelscope(&self) -> Hub {
        Hub::new(Api::ModelScope, &self.modelscope_endpoint, self.modelscope_token.clone(), self.idle_timeout)
    }
}

impl std::fmt::Debug for ModelSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelSettings")
            .field("hub_endpoint", &self.hub_endpoint)
            .field("hub_token", &self.hub_token.as_ref().map(|_| "set"))
            .field("modelscope_endpoint", &self.modelscope_endpoint)
            .field("modelscope_token", &self.modelscope_token.as_ref().map(|_| "set"))
            .field("cache", &self.cache)
            .field("pip", &self.pip)
            .field("idle_timeout", &self.idle_timeout)
            .finish()
    }
}
