//! A text encoder on a device: packed forward pass, pooling, normalisation, an adapter that may be attached.
//!
//! ```text
//! BERT      embeddings → norm → layers → pool → normalise
//! decoder   words → layers → norm → pool → normalise
//! ```
//!
//! Layers are those of `bert` and `decoder`; `forward` and `backward` hold what both share, `parts` what they consist
//! of, `names` what files call it, `buckets` the small passes that a device remembers.
//!
//! Sources: BERT (Devlin et al. 2018), Llama (Touvron et al. 2023), sentence-transformers' modules.

mod backward;
mod bert;
mod buckets;
mod decoder;
mod forward;
mod load;
mod names;
mod parts;
mod random;

use std::sync::Arc;

use motley_backends::{Backend, DeviceKind, SourceDtype};

pub(crate) use backward::Backward;
pub(crate) use forward::{DeviceBatch, Draws, Pass};

use self::buckets::Buckets;
use self::parts::{Frame, Layer, WordPiece};
use crate::adapter::Adapter;
use crate::device::Device;
use crate::model::split_by_budget;
use crate::plan::PlannedModel;
use crate::tape::Value;
use crate::{Error, ModelConfig, PackedBatch, Pooling, Result, Role, TokenizedText};

/// Texts and bytes of a model's files; `weights` is one safetensors file or its shards.
#[derive(Debug, Clone, Copy)]
pub struct ModelFiles<'a> {
    pub config_json: &'a str,
    pub pooling_json: Option<&'a str>,
    pub modules_json: Option<&'a str>,
    pub sentence_bert_json: Option<&'a str>,
    pub weights: &'a [&'a [u8]],
}

/// How the frozen linear layers are kept: NF4 blocks of 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    /// Scales quantized to 8 bits too.
    pub double: bool,
}

/// Dropout of the base model while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelDropout {
    #[default]
    Off,
    /// The probabilities of config.json.
    Config,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    pub quantization: Option<Quantization>,
    /// Overrides what modules.json says.
    pub normalize: Option<bool>,
    pub dropout: ModelDropout,
}

/// A model on a device. Embedding takes `&self` from any number of threads.
pub struct Encoder {
    device: Device,
    config: ModelConfig,
    pooling: Pooling,
    dropout: ModelDropout,
    quantization: Option<Quantization>,
    max_sequence_length: Option<usize>,
    /// The table of words [vocabulary, hidden], in the precision of activations, piece after piece.
    words: Vec<WordPiece>,
    frame: Frame,
    layers: Vec<Layer>,
    adapter: Option<Adapter>,
    bound_tokens: usize,
    pass_tokens: usize,
    buckets: Option<Buckets>,
}

/// Tokens of one pass of [`Encoder::embed`].
///
/// On a CPU activations of a MiniLM-sized model then stay within a few MiB (its caches), and products have enough rows
/// to run at full speed. A device is waited for once a pass, so it gets enough to make that small.
pub fn pass_tokens(kind: DeviceKind) -> usize {
    match kind {
        DeviceKind::Cpu | DeviceKind::Null => 1024,
        DeviceKind::Wgpu => 8192,
        DeviceKind::Cuda => 16384,
    }
}

/// Name without prefix, [out, in], values.
pub type MergedWeight = (String, [usize; 2], Vec<f32>);

impl Encoder {
    /// Reads a model's files and brings its weights to the device.
    ///
    /// # Errors
    /// Files that are malformed, unsupported or do not fit each other; no memory.
    pub fn load(backend: Arc<dyn Backend>, model: &ModelFiles<'_>, options: &LoadOptions) -> Result<Self> {
        load::load(Device { backend }, model, options)
    }

    /// Checks that the weight files hold every tensor with the shape that config.json gives it; copies nothing.
    ///
    /// # Errors
    /// As [`Encoder::load`], but for those of the device.
    pub fn check(model: &ModelFiles<'_>) -> Result<()> {
        load::check(model)
    }

    /// A model of random weights, made layer by layer on any backend: matrices as of N(0, 0.02²), norms 1, biases 0.
    /// The same `seed` gives the same values everywhere. Texts are pooled as the model's family does by default.
    ///
    /// # Errors
    /// No memory.
    pub fn random(
        backend: Arc<dyn Backend>,
        config: &ModelConfig,
        options: &LoadOptions,
        seed: u64,
    ) -> Result<Self> {
        load::random(Device { backend }, config, options, seed)
    }

    /// A model without values, on the backend that only counts: its memory is that of a real one.
    pub(crate) fn blank(
        backend: Arc<dyn Backend>,
        model: &PlannedModel,
        options: &LoadOptions,
    ) -> Result<Self> {
        load::blank(Device { backend }, model, options)
    }

    /// What every linear layer's weight is stored in; f32 where they differ.
    ///
    /// # Errors
    /// As [`Encoder::check`], for these tensors.
    pub(crate) fn stored(config: &ModelConfig, weights: &[&[u8]]) -> Result<SourceDtype> {
        load::stored(config, weights)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Width of an embedding.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    /// Rows of the word embeddings: every token id is below.
    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// Longest text that the position embeddings allow, in tokens.
    pub fn max_positions(&self) -> usize {
        self.config.max_positions()
    }

    /// Longest text that the model's sentence_bert_config.json asks for.
    pub fn max_sequence_length(&self) -> Option<usize> {
        self.max_sequence_length
    }

    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.device.backend
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens that [`Encoder::embed`] computes at once.
    pub fn pass_tokens(&self) -> usize {
        self.pass_tokens
    }

    /// Tokens that [`Encoder::embed`] computes at once, in place of [`pass_tokens`].
    pub fn set_pass_tokens(&mut self, tokens: usize) {
        self.pass_tokens = tokens.max(1);
    }

    /// Tokens of one pass that the device can bind, for it may bind less of a buffer than it has.
    pub(crate) fn bound_tokens(&self) -> usize {
        self.bound_tokens
    }

    /// Embeds texts: f32 [texts, hidden], row-major, pooled, normalised if the model says so. No dropout. A text has
    /// the same bits alone and in any batch on the CPU.
    ///
    /// # Errors
    /// A text without tokens or with too many, an unknown id, a vector that is not finite, a device that failed.
    pub fn embed(&self, texts: &[TokenizedText]) -> Result<Vec<f32>> {
        let vectors = self.embed_unchecked(texts)?;
        let broken = |vector: &[f32]| !vector.iter().all(|value| value.is_finite());
        match vectors.chunks_exact(self.hidden()).position(broken) {
            None => Ok(vectors),
            Some(index) => Err(Error::NonFiniteEmbedding { index }),
        }
    }

    /// As [`Encoder::embed`] for callers that answer for each text by itself: vectors that are not finite are among
    /// the others.
    ///
    /// # Errors
    /// A text without tokens or with too many, an unknown id, a device that failed.
    pub fn embed_unchecked(&self, texts: &[TokenizedText]) -> Result<Vec<f32>> {
        if let Some(buckets) = &self.buckets
            && let Some(embeddings) = self.replay(buckets, texts)?
        {
            return Ok(embeddings);
        }
        let mut embeddings = Vec::with_capacity(texts.len() * self.hidden());
        let mut computing: Option<Value> = None;
        for run in split_by_budget(texts.iter().map(|text| text.ids.len()), self.pass_tokens) {
            let chunk: Vec<&TokenizedText> = texts[run.clone()].iter().collect();
            // Packed while the device still computes the pass before.
            let packed =
                PackedBatch::new(&self.config, &chunk, &[]).map_err(|error| offset(error, run.start))?;
            if let Some(value) = computing.take() {
                embeddings.extend(self.computed(value)?);
            }
            computing = Some(self.compute(&packed)?);
        }
        if let Some(value) = computing {
            embeddings.extend(self.computed(value)?);
        }
        Ok(embeddings)
    }

    /// Embeds texts all at once.
    pub(crate) fn embed_pass(&self, packed: &PackedBatch) -> Result<Vec<f32>> {
        self.computed(self.compute(packed)?)
    }

    /// Asks the device for a pass.
    fn compute(&self, packed: &PackedBatch) -> Result<Value> {
        self.device.in_pool(|| {
            let batch = DeviceBatch::upload(&self.device, packed)?;
            Pass { encoder: self, batch: &batch, draws: None, tape: None }.run(false)
        })
    }

    /// Waits for a pass.
    fn computed(&self, value: Value) -> Result<Vec<f32>> {
        self.device.download(value.tensor.bound(), value.tensor.count())
    }

    /// Attaches an adapter made for this model, in place of one attached before.
    pub fn attach(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
        self.buckets = None;
    }

    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The weights of all linear layers with the adapter's update added, by their names in the weight file without
    /// prefix: (name, [out, in], values). On a quantized base they are the dequantized weights plus the update. The
    /// other tensors of the model are unchanged, biases included.
    ///
    /// # Errors
    /// No adapter is attached; the device failed.
    pub fn merged_weights(&self) -> Result<impl Iterator<Item = Result<MergedWeight>>> {
        let adapter = self.adapter.as_ref().ok_or(Error::NoAdapter)?;
        let flat = adapter.parameters()?;
        let places = (0..self.layers.len())
            .flat_map(|layer| self.config.roles().iter().map(move |role| (layer, *role)));
        Ok(places.map(move |(layer, role)| {
            let [inputs, outputs] = role.widths(&self.config);
            let mut values = self.base_weight(layer, role)?;
            if let Some(module) = adapter.module(layer, role) {
                values
                    .iter_mut()
                    .zip(adapter.update(&flat, module))
                    .for_each(|(value, update)| *value += update);
            }
            Ok((format!("{}.weight", self.config.module_path(layer, role)), [outputs, inputs], values))
        }))
    }

    /// A linear layer's weight as the device multiplies with it, [out, in].
    fn base_weight(&self, layer: usize, role: Role) -> Result<Vec<f32>> {
        let (at, row) = self.place(layer, role);
        let values = self.device.backend.read_weight(self.linear(at).0)?;
        let [inputs, outputs] = role.widths(&self.config);
        Ok(values[row * inputs..][..inputs * outputs].to_vec())
    }
}

/// Texts are named by their place in the whole call.
fn offset(error: Error, start: usize) -> Error {
    match error {
        Error::TextLength { index, tokens, most } => Error::TextLength { index: index + start, tokens, most },
        Error::TokenOutOfRange { index, id, vocabulary } => {
            Error::TokenOutOfRange { index: index + start, id, vocabulary }
        }
        other => other,
    }
}
