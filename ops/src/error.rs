//! What can go wrong while a model is read, run or trained.

use safetensors::SafeTensorError;

/// An error of this crate; one variant for each thing a caller could do differently.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file} is malformed: {problem}\nhint: take the whole model folder from its source again")]
    Malformed { file: &'static str, problem: String },
    #[error(
        "model type {found} is not supported\nhint: supported are {supported}; choose a model of one of these"
    )]
    UnsupportedModel { found: String, supported: &'static str },
    #[error("{file}: {setting} = {found} is not supported\nhint: supported is {supported}")]
    UnsupportedSetting { file: &'static str, setting: String, found: String, supported: &'static str },
    #[error(
        "config.json: {key} is {value}, {expected} is needed\nhint: the file is damaged or another model's"
    )]
    ModelSize { key: &'static str, value: usize, expected: String },
    #[error("weight file is not safetensors: {0}\nhint: take the whole model folder from its source again")]
    WeightFile(SafeTensorError),
    #[error("weights have no tensor {name}\nhint: the weight file does not belong to this config.json")]
    MissingTensor { name: String },
    #[error(
        "tensor {name} has shape {found:?}, {expected:?} is needed\n\
         hint: weights and config.json come from different models; take both from one folder"
    )]
    TensorShape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "tensor {name} has dtype {found}, supported are F32, F16 and BF16\nhint: save the model as one of these"
    )]
    TensorDtype { name: String, found: String },
    #[error(
        "tensor {name} holds {value} at {place:?}, NF4 has codes for finite values alone\n\
         hint: the weight file is damaged, or the training that made it diverged; take another copy"
    )]
    NonFiniteWeight { name: String, place: [usize; 2], value: f32 },
    #[error(
        "the vector of text {index} holds NaN or infinity\n\
         hint: the model's weights are damaged or too large; take another copy of the model"
    )]
    NonFiniteEmbedding { index: usize },
    #[error("adapter target {target} matches no module\nhint: modules are {candidates}, or all-linear")]
    UnknownTarget { target: String, candidates: String },
    #[error(
        "adapter {setting} is {found}, {expected} is needed\nhint: the adapter was made for another model or by another method"
    )]
    AdapterSetting { setting: &'static str, found: String, expected: &'static str },
    #[error(
        "adapter tensor {name} fits no linear layer of this model\nhint: the adapter was made for another model"
    )]
    AdapterTensor { name: String },
    #[error("no adapter is attached")]
    NoAdapter,
    #[error("text {index} has {tokens} tokens, the model takes 1 to {most}\nhint: lower max_length")]
    TextLength { index: usize, tokens: usize, most: usize },
    #[error(
        "text {index} has token id {id}, the model knows {vocabulary}\nhint: the tokenizer is another model's"
    )]
    TokenOutOfRange { index: usize, id: u32, vocabulary: usize },
    #[error("sample {sample} has {found}, the loss needs {expected}")]
    Row { sample: u32, found: String, expected: &'static str },
    #[error(
        "a tensor of {rows} times {width} elements is needed, a device counts at most 4294967295\n\
         hint: lower token_budget, batch_size or max_length, or choose a smaller model"
    )]
    TooManyElements { rows: usize, width: usize },
    #[error("step has no rows")]
    NoRows,
    #[error("{quantity} is {value} in step {step}\nhint: lower the learning rate, or look for broken rows")]
    Numerics { step: u64, quantity: &'static str, value: f64 },
    #[error("{setting} = {found} is out of range, {expected} is needed")]
    Setting { setting: &'static str, found: f64, expected: &'static str },
    #[error("trainer state does not fit: {problem}")]
    State { problem: String },
    #[error("{given} embeddings of {expected} were given")]
    EmbeddingCount { given: usize, expected: usize },
    #[error(transparent)]
    Backend(#[from] motley_backends::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
