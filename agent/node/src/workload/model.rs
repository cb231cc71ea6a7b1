//! A model ready to embed: its folder, tokenizer and encoder, with an adapter on the base that it belongs to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use motley_backends::Backend;
use motley_ops::{
    Adapter, Encoder, LoadOptions, ModelConfig, ModelDropout, ModelFiles, PlannedModel, Pooling,
    TokenizedText,
};
use motley_scheduler_core::document::model::AdapterBase;
use motley_scheduler_core::document::{Model, Quantization};

use super::WorkloadError;
use super::identity::{AdapterFiles, BaseFacts, Recipe, preparation_sha256};
use crate::models::{
    self, LoadedModel, ModelError, ModelFolder, ModelRequest, ModelSettings, Places, Progress,
};
use crate::text::settings::{SettingsFiles, SettingsOverrides};
use crate::text::{TextSettings, TextTokenizer};

/// A model folder, opened: texts read, weights mapped.
pub(crate) struct OpenModel {
    pub(crate) folder: ModelFolder,
    pub(crate) files: LoadedModel,
    pub(crate) tokenizer: Arc<TextTokenizer>,
    /// As one would write it in a document.
    pub(crate) source: String,
}

/// An encoder with its tokenizer.
pub(crate) struct TextModel {
    pub(crate) tokenizer: Arc<TextTokenizer>,
    pub(crate) encoder: Encoder,
    pub(crate) backend: Arc<dyn Backend>,
}

/// The vectors of a list of texts.
#[derive(Debug, Default)]
pub(crate) struct Embedded {
    /// Row by row.
    pub(crate) vectors: Vec<f32>,
    pub(crate) tokens: u64,
    pub(crate) truncated: u64,
}

/// Texts tokenized and embedded together: bounds memory, and is enough to keep all threads busy.
const WINDOW_TEXTS: usize = 2048;

/// Finds or fetches the document's model and opens it. Prompts and longest text that an adapter was trained with stand
/// below those of the document, above those of the model.
///
/// # Errors
/// The model cannot be had, lacks a file, or its tokenizer does not fit.
pub(crate) fn open_model(
    model: &Model,
    adapter: Option<&AdapterFiles>,
    settings: &ModelSettings,
    places: &Places,
    progress: Progress<'_>,
) -> Result<OpenModel, WorkloadError> {
    let folder = models::resolve(&ModelRequest::from(model), settings, places, progress);
    let folder = folder.map_err(|error| match error {
        ModelError::Stopped => WorkloadError::Stopped,
        error => error.into(),
    })?;
    let files = folder.open()?;
    let config = ModelConfig::parse(&files.config)?;
    let weights: Vec<&[u8]> = files.weights.iter().map(|map| &map[..]).collect();
    Encoder::check(&model_files(&files, &weights))?;
    let setting_files = SettingsFiles {
        sentence_bert_config: files.sentence_bert.as_deref(),
        tokenizer_config: files.tokenizer_config.as_deref(),
        config_sentence_transformers: files.sentence_transformers.as_deref(),
    };
    let trained = adapter.and_then(|adapter| adapter.identity.as_ref()).map(|identity| &identity.base);
    let mut prompts = trained.map(|base| base.prompts.clone()).unwrap_or_default();
    prompts.extend(model.prompts.clone());
    let max_length = model.max_length.or(trained.map(|base| base.max_length));
    let overrides = SettingsOverrides { max_length, prompts };
    let text_settings = TextSettings::read(setting_files, &overrides, config.max_positions())?;
    let tokenizer = TextTokenizer::new(files.tokenizer.as_bytes(), text_settings, config.vocabulary)?;
    Ok(OpenModel { folder, files, tokenizer: Arc::new(tokenizer), source: model.source.to_string() })
}

impl OpenModel {
    /// Brings the weights to a device.
    ///
    /// # Errors
    /// Weights that do not fit config.json, or a device without room.
    pub(crate) fn load(
        &self,
        backend: &Arc<dyn Backend>,
        quantization: Option<Quantization>,
        dropout_from_config: bool,
    ) -> Result<TextModel, WorkloadError> {
        let weights: Vec<&[u8]> = self.files.weights.iter().map(|map| &map[..]).collect();
        let options = LoadOptions {
            quantization: quantization.map(|Quantization::Nf4 { double_quantization }| {
                motley_ops::Quantization { double: double_quantization }
            }),
            normalize: None,
            dropout: if dropout_from_config { ModelDropout::Config } else { ModelDropout::Off },
        };
        let encoder = Encoder::load(Arc::clone(backend), &self.model_files(&weights), &options)?;
        Ok(TextModel { tokenizer: Arc::clone(&self.tokenizer), encoder, backend: Arc::clone(backend) })
    }

    /// Loads the base that an adapter belongs to, and attaches it.
    ///
    /// # Errors
    /// As [`OpenModel::load`]; an adapter of another base, or with other prompts or pooling.
    pub(crate) fn load_with_adapter(
        &self,
        backend: &Arc<dyn Backend>,
        adapter: &AdapterFiles,
        base: AdapterBase,
    ) -> Result<TextModel, WorkloadError> {
        let quantization = adapter.quantization(base, &self.folder.weights_sha256.to_string())?;
        adapter.check_preparation(&self.tokenizer.settings().prompts, &self.preparation_sha256()?)?;
        let mut model = self.load(backend, quantization, false)?;
        let attached = Adapter::from_peft(&model.encoder, &adapter.config, &adapter.weights)?;
        model.encoder.attach(attached);
        Ok(model)
    }

    /// What memory is planned with.
    ///
    /// # Errors
    /// As [`Encoder::check`].
    pub(crate) fn planned(&self) -> Result<PlannedModel, WorkloadError> {
        let weights: Vec<&[u8]> = self.files.weights.iter().map(|map| &map[..]).collect();
        Ok(PlannedModel::of_files(&self.model_files(&weights))?)
    }

    pub(crate) fn model_files<'a>(&'a self, weights: &'a [&'a [u8]]) -> ModelFiles<'a> {
        model_files(&self.files, weights)
    }

    pub(crate) fn pooling(&self) -> Result<Pooling, WorkloadError> {
        let config = ModelConfig::parse(&self.files.config)?;
        let (pooling, modules) = (self.files.pooling.as_deref(), self.files.modules.as_deref());
        Ok(Pooling::parse(pooling, modules, &config)?)
    }

    fn preparation_sha256(&self) -> Result<String, WorkloadError> {
        let pooling = self.pooling()?;
        let prompts = &self.tokenizer.settings().prompts;
        Ok(preparation_sha256(prompts, pooling_name(pooling.kind), pooling.normalize))
    }

    /// What PEFT is to load as the base: the hub id, or the folder's origin in words.
    pub(crate) fn peft_name(&self) -> String {
        let source = self.source.strip_prefix("modelscope:").unwrap_or(&self.source);
        source.strip_prefix("file:").unwrap_or(source).to_owned()
    }

    /// What an adapter trained on this base has to say about it.
    pub(crate) fn base_facts(&self, quantization: Option<Quantization>) -> Result<BaseFacts, WorkloadError> {
        Ok(BaseFacts {
            source: self.source.clone(),
            weights_sha256: self.folder.weights_sha256.to_string(),
            quantization: quantization.map(Recipe::of),
            prompts: self.tokenizer.settings().prompts.clone(),
            max_length: self.tokenizer.max_length() as u32,
            preparation_sha256: self.preparation_sha256()?,
        })
    }
}

fn model_files<'a>(files: &'a LoadedModel, weights: &'a [&'a [u8]]) -> ModelFiles<'a> {
    ModelFiles {
        config_json: &files.config,
        pooling_json: files.pooling.as_deref(),
        modules_json: files.modules.as_deref(),
        sentence_bert_json: files.sentence_bert.as_deref(),
        weights,
    }
}

/// sentence-transformers' name of a pooling.
pub(crate) fn pooling_name(kind: motley_kernels::pool::Kind) -> &'static str {
    use motley_kernels::pool::Kind;
    match kind {
        Kind::Mean => "mean",
        Kind::Cls => "cls",
        Kind::LastToken => "lasttoken",
        Kind::Max => "max",
        Kind::MeanSqrtLength => "mean_sqrt_len_tokens",
        Kind::WeightedMean => "weightedmean",
    }
}

impl TextModel {
    pub(crate) fn hidden(&self) -> usize {
        self.encoder.hidden()
    }

    /// Embeds texts after one prompt, in order. `observe` hears how many are done, and may end it.
    ///
    /// # Errors
    /// Those of the tokenizer, the device and `observe`.
    pub(crate) fn embed<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        prompt: &str,
        observe: &mut dyn FnMut(usize) -> Result<(), WorkloadError>,
    ) -> Result<Embedded, WorkloadError> {
        let mut all =
            Embedded { vectors: Vec::with_capacity(texts.len() * self.hidden()), ..Embedded::default() };
        observe(0)?;
        for (window, texts) in texts.chunks(WINDOW_TEXTS).enumerate() {
            let part = embed_window(&self.encoder, &self.tokenizer, &*self.backend, (texts, prompt))
                .map_err(|error| error.renumbered(|index| window * WINDOW_TEXTS + index))?;
            all.vectors.extend_from_slice(&part.vectors);
            all.tokens += part.tokens;
            all.truncated += part.truncated;
            observe(window * WINDOW_TEXTS + texts.len())?;
        }
        Ok(all)
    }
}

/// Tokenizes inside the device's pool and embeds, texts of like length side by side.
pub(crate) fn embed_window<T: AsRef<str> + Sync>(
    encoder: &Encoder,
    tokenizer: &TextTokenizer,
    backend: &dyn Backend,
    (texts, prompt): (&[T], &str),
) -> Result<Embedded, WorkloadError> {
    let tokenized = tokenize(tokenizer, backend, texts, prompt)?;
    let truncated = tokenized.iter().filter(|encoded| encoded.is_truncated()).count() as u64;
    let mut order: Vec<usize> = (0..tokenized.len()).collect();
    order.sort_by_key(|&index| tokenized[index].text.ids.len());
    let mut tokenized: Vec<Option<TokenizedText>> =
        tokenized.into_iter().map(|encoded| Some(encoded.text)).collect();
    let sorted: Vec<TokenizedText> =
        order.iter().map(|&index| tokenized[index].take().expect("an order names each index once")).collect();
    let tokens = sorted.iter().map(|text| text.ids.len() as u64).sum();
    let width = encoder.hidden();
    let rows = encoder.embed(&sorted).map_err(WorkloadError::from);
    let rows = rows.map_err(|error| error.renumbered(|index| order[index]))?;
    let mut vectors = vec![0f32; rows.len()];
    for (row, &index) in rows.chunks_exact(width).zip(&order) {
        vectors[index * width..(index + 1) * width].copy_from_slice(row);
    }
    Ok(Embedded { vectors, tokens, truncated })
}

/// Tokenizes on the device's own threads: there is no other pool.
pub(crate) fn tokenize<T: AsRef<str> + Sync>(
    tokenizer: &TextTokenizer,
    backend: &dyn Backend,
    texts: &[T],
    prompt: &str,
) -> Result<Vec<crate::text::Encoded>, WorkloadError> {
    let mut encoded = None;
    backend.run_in_pool(&mut || encoded = Some(tokenizer.encode_all(texts, prompt)));
    Ok(encoded.expect("the pool has run the work")?)
}

/// Where `file:` and `job:` models of a job lie.
pub(crate) fn places(folders: &crate::runner::Folders) -> Places {
    Places { input: Some(folders.input.clone()), jobs: Some(folders.inputs.clone()) }
}

/// Shows seconds for people: `1.9 s`, `12.3 min`.
pub(crate) fn shown_seconds(seconds: f64) -> String {
    let duration = Duration::from_secs_f64(seconds.max(0.0));
    if duration < Duration::from_secs(120) {
        format!("{seconds:.1} s")
    } else {
        format!("{:.1} min", seconds / 60.0)
    }
}

/// Folder of the adapter that a document names.
pub(crate) fn adapter_folder(
    reference: &motley_scheduler_core::document::AdapterReference,
    folders: &crate::runner::Folders,
) -> PathBuf {
    match &reference.source {
        motley_scheduler_core::document::Source::Job { job } => folders.inputs.join(format!("job-{job}")),
        _ => folders.input.join("adapter.source"),
    }
}
