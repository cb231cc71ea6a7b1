//! Every key of job documents: the one list that parser, documentation and tidy test share.
//!
//! The parser refuses what is not listed here and takes each range from here, so the list cannot drift from it.

use Absent::{Means, Required, Value};
use Range::{Boolean, Choice, Duration, Integer, List, Number, Size, Table, Text, Version};

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted: `train.epochs`; `evaluate[].task` in an array of tables.
    pub name: &'static str,
    /// Kinds of documents that have it.
    pub kinds: &'static [&'static str],
    pub range: Range,
    pub absent: Absent,
    pub meaning: &'static str,
}

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub enum Range {
    /// Exactly the number 1.
    Version,
    Boolean,
    /// min..=max
    Integer(u64, u64),
    /// min ≤ value ≤ max
    Number(f64, f64),
    Choice(&'static [&'static str]),
    /// What the text looks like.
    Text(&'static str),
    /// `512MiB`, within min..=max bytes.
    Size(u64, u64),
    /// `30s`, within min..=max milliseconds.
    Duration(u64, u64),
    /// A list, or one of several forms, in words.
    List(&'static str),
    /// A table of free names.
    Table(&'static str),
}

/// What follows when the key is absent.
#[derive(Debug, Clone, Copy)]
pub enum Absent {
    /// It must be there; with an example.
    Required(&'static str),
    /// Same as this TOML value.
    Value(&'static str),
    /// In words.
    Means(&'static str),
}

const ANY: &[&str] = &["train", "evaluate", "serve"];
const TRAIN: &[&str] = &["train"];
const EVALUATE: &[&str] = &["evaluate"];
const SERVE: &[&str] = &["serve"];
const MEASURED: &[&str] = &["train", "evaluate"];
const USED: &[&str] = &["evaluate", "serve"];

/// Largest number of a count that is only bounded to catch mistakes.
const MANY: u64 = 1_000_000_000;
/// TOML's integers end here.
const INTEGER_MAX: u64 = i64::MAX as u64;
/// 2^-20 and 2^20: for factors that are only bounded to catch mistakes.
const SMALL: f64 = 1.0 / 1_048_576.0;
const LARGE: f64 = 1_048_576.0;

const PATH: Range = Text("a path, relative to the document");
const PROMPT: Range = Text("a name in `model.prompts` or of the model's own prompts");
const SOURCE: Range = Text("a hub id, modelscope:ID, file:PATH, pip:PACKAGE or job:ID");

const fn key(
    name: &'static str,
    kinds: &'static [&'static str],
    range: Range,
    absent: Absent,
    meaning: &'static str,
) -> Key {
    Key { name, kinds, range, absent, meaning }
}

/// All keys, in the order of a document.
#[rustfmt::skip] // a row a key
pub const KEYS: &[Key] = &[
    key("version", ANY, Version, Required("`version = 1`"), "format of the document"),
    key("kind", ANY, Choice(ANY), Required("`kind = \"train\"`"), "what the job does"),
    key("name", ANY, Text("1 to 64 letters, digits, `-`, `_` and `.`"), Required("`name = \"my-job\"`"), "the job's name, for people"),
    key("priority", ANY, Choice(&["low", "normal", "high", "urgent"]), Value("\"normal\""), "who goes first when places are scarce"),
    key("resources.devices", ANY, List("a count of 1 to 4096, or a range such as \"1..8\""), Value("1"), "devices for the job, one for now: more as the least is refused on submission; several `[[resources]]` tables are alternatives in order of preference"),
    key("resources.backend", ANY, List("\"auto\", \"cuda\", \"wgpu\", \"cpu\", or a list out of the last three"), Value("\"auto\""), "families of devices, in order of preference; auto: the device that was measured to be the fastest"),
    key("resources.device", ANY, List("an index from 0 to 4095, or a list of them"), Means("any"), "which of the backend's devices, as `ctl devices` counts them"),
    key("resources.memory", ANY, Text("\"auto\" or a size such as \"12GiB\""), Value("\"auto\""), "memory on each device; auto: what the planner says"),
    key("resources.threads", ANY, Integer(1, 4096), Means("all cores of the node"), "worker threads of the cpu backend"),
    key("model.source", ANY, SOURCE, Required("`source = \"sentence-transformers/all-MiniLM-L6-v2\"` under `[model]`"), "where the model comes from"),
    key("model.fallbacks", ANY, List("a list of sources, as `model.source`"), Value("[]"), "tried in order when the source cannot be had"),
    key("model.revision", ANY, Text("a branch, tag or commit"), Value("\"main\""), "which version of the model on the hub"),
    key("model.sha256", ANY, Text("64 hexadecimal digits"), Means("not checked"), "what the weights file has to hash to, wherever it comes from"),
    key("model.max_length", ANY, Integer(4, 131_072), Means("what the model says"), "longest text in tokens, special tokens included"),
    key("model.prompts", ANY, Table("a table of texts, such as { query = \"query: \" }"), Value("{}"), "prompts by name, over those of the model"),
    key("model.dropout", ANY, Choice(&["off", "config"]), Value("\"off\""), "dropout of the base while training: none, or as its config says"),
    key("model.precision", ANY, Choice(&["auto", "f32", "bf16"]), Value("\"auto\""), "what activations are kept in; auto: bf16 on cuda where the card has it, else f32"),
    key("model.quantization", USED, Choice(&["nf4"]), Means("full precision"), "how the base is kept; with an adapter, the adapter's own base decides"),
    key("model.double_quantization", USED, Boolean, Value("true"), "quantize the scales of nf4 too"),
    key("adapter.kind", TRAIN, Choice(&["lora", "qlora"]), Required("`kind = \"qlora\"` under `[adapter]`"), "what is trained: low-rank adapters, or the same on a quantized base"),
    key("adapter.rank", TRAIN, Integer(1, 1024), Value("8"), "rank of the low-rank matrices"),
    key("adapter.alpha", TRAIN, Number(SMALL, LARGE), Value("16.0"), "the update is scaled by alpha / rank"),
    key("adapter.dropout", TRAIN, Number(0.0, 0.99), Value("0.05"), "probability that an adapter's input is dropped"),
    key("adapter.rslora", TRAIN, Boolean, Value("false"), "scale by alpha / √rank instead"),
    key("adapter.targets", TRAIN, List("\"all-linear\" or a list of module names such as [\"query\", \"value\"]"), Value("\"all-linear\""), "which linear layers get an adapter"),
    key("adapter.quantization", TRAIN, Choice(&["nf4"]), Value("\"nf4\""), "how the frozen base is kept (qlora)"),
    key("adapter.double_quantization", TRAIN, Boolean, Value("true"), "quantize the scales of nf4 too (qlora)"),
    key("adapter.source", USED, Text("job:ID or file:PATH"), Required("`source = \"job:1\"` or `source = \"file:FOLDER\"` under `[adapter]`"), "the adapter to use"),
    key("adapter.base", USED, Choice(&["own", "full_precision"]), Value("\"own\""), "the base under the adapter: the one that it was trained on, or the unquantized one"),
    key("data.train", TRAIN, PATH, Required("`train = \"train.jsonl\"` under `[data]`"), "training rows, JSONL"),
    key("data.validation", TRAIN, PATH, Means("no validation"), "validation rows, JSONL"),
    key("data.anchor_prompt", TRAIN, PROMPT, Means("no prompt"), "name of the prompt before the first text of a row"),
    key("data.other_prompt", TRAIN, PROMPT, Means("no prompt"), "name of the prompt before every other text of a row"),
    key("loss.kind", TRAIN, Choice(&["cosent", "infonce", "cosine_similarity"]), Required("`kind = \"cosent\"` under `[loss]`"), "what is minimised"),
    key("loss.scale", TRAIN, Number(SMALL, LARGE), Value("20.0"), "factor of the cosines (cosent)"),
    key("loss.temperature", TRAIN, Number(SMALL, LARGE), Value("0.05"), "divisor of the cosines (infonce)"),
    key("loss.symmetric", TRAIN, Boolean, Value("false"), "also from the other text to the anchor (infonce)"),
    key("loss.in_batch_negatives", TRAIN, Boolean, Value("true"), "the other rows of the batch are negatives (infonce)"),
    key("loss.false_negative_margin", TRAIN, Number(-2.0, 2.0), Means("none is left out"), "leave out negatives whose cosine is above the positive's plus this (infonce)"),
    key("optimizer.kind", TRAIN, Choice(&["adamw"]), Value("\"adamw\""), "the optimizer"),
    key("optimizer.learning_rate", TRAIN, Number(0.0, 10.0), Value("1e-4"), "peak learning rate"),
    key("optimizer.weight_decay", TRAIN, Number(0.0, 10.0), Value("0.01"), "decoupled weight decay"),
    key("optimizer.beta1", TRAIN, Number(0.0, 0.999_999), Value("0.9"), "decay of the first moment"),
    key("optimizer.beta2", TRAIN, Number(0.0, 0.999_999), Value("0.999"), "decay of the second moment"),
    key("optimizer.epsilon", TRAIN, Number(1e-16, 1.0), Value("1e-8"), "added to the root of the second moment"),
    key("optimizer.max_gradient_norm", TRAIN, Number(0.0, LARGE), Value("1.0"), "gradients are scaled down to this global norm; 0 turns it off"),
    key("schedule.kind", TRAIN, Choice(&["linear", "cosine", "constant"]), Value("\"linear\""), "course of the learning rate after warm-up"),
    key("schedule.warmup", TRAIN, List("a share of all steps from 0.0 to 1.0, or a count such as \"50 steps\""), Value("0.0"), "the learning rate grows from 0 over this"),
    key("train.epochs", TRAIN, Integer(1, 10_000), Value("1"), "passes over the data"),
    key("train.max_steps", TRAIN, Integer(1, MANY), Means("as many as the epochs need"), "stop after so many optimizer steps"),
    key("train.batch_size", TRAIN, Integer(1, 65_536), Value("32"), "rows of a micro-batch"),
    key("train.accumulation_steps", TRAIN, Integer(1, 65_536), Value("1"), "micro-batches of an optimizer step"),
    key("train.seed", TRAIN, Integer(0, INTEGER_MAX), Value("42"), "seed of all randomness"),
    key("train.shuffle", TRAIN, Boolean, Value("true"), "a new order every epoch; false: file order"),
    key("train.drop_last", TRAIN, Boolean, Value("false"), "leave out the last, smaller batch of an epoch"),
    key("train.token_budget", TRAIN, Integer(512, 1 << 24), Value("16384"), "tokens computed at once; larger batches are split and recomputed"),
    key("train.gradient_checkpointing", TRAIN, Boolean, Means("true for decoders, false for the BERT family"), "of each layer only the input is kept on the way forth, and the layer runs again on the way back: less memory, more time"),
    key("train.log_every", TRAIN, Integer(1, MANY), Value("10"), "steps between lines of the log"),
    key("checkpoint.every", TRAIN, Text("a count such as \"100 steps\" or \"1 epoch\""), Value("\"100 steps\""), "how often all that is needed to continue is stored"),
    key("checkpoint.keep", TRAIN, Integer(1, 1000), Value("3"), "newest checkpoints kept on the node"),
    key("evaluate[].task", MEASURED, Choice(&["sts", "pair_classification", "retrieval"]), Required("`task = \"sts\"` to the `[[evaluate]]` table"), "what is measured"),
    key("evaluate[].name", MEASURED, Text("1 to 64 letters, digits, `-`, `_` and `.`"), Means("the data's name without ending"), "name in the report"),
    key("evaluate[].data", MEASURED, PATH, Required("`data = \"test.jsonl\"` to the `[[evaluate]]` table"), "JSONL file, or BEIR-style folder for retrieval"),
    key("evaluate[].query_prompt", MEASURED, PROMPT, Means("no prompt"), "name of the prompt before first sentences and queries"),
    key("evaluate[].document_prompt", MEASURED, PROMPT, Means("no prompt"), "name of the prompt before second sentences and documents"),
    key("bootstrap.resamples", EVALUATE, Integer(1, 1_000_000), Value("1000"), "resamples of the confidence interval"),
    key("bootstrap.seed", EVALUATE, Integer(0, INTEGER_MAX), Value("42"), "seed of the resampling"),
    key("api.listen", SERVE, Text("an address and port such as 127.0.0.1:8080"), Value("\"127.0.0.1:8080\""), "where clients connect"),
    key("api.served_name", SERVE, Text("a name"), Means("the job's name"), "the model's name for clients"),
    key("api.keys_file", SERVE, PATH, Means("open to all who reach the port"), "file with one bearer key a line"),
    key("api.inputs_max", SERVE, Integer(1, 1_000_000), Value("2048"), "texts of a request"),
    key("api.request_tokens_max", SERVE, Integer(1, MANY), Value("300000"), "tokens of a request, summed"),
    key("api.body_max", SERVE, Size(1 << 10, 1 << 32), Value("\"32MiB\""), "bytes of a request"),
    key("api.truncate", SERVE, Choice(&["error", "right"]), Value("\"error\""), "what happens to a text over `model.max_length`"),
    key("api.prompt", SERVE, PROMPT, Means("no prompt"), "name of the prompt before every input"),
    key("batch.token_budget", SERVE, Integer(512, 1 << 24), Value("4096"), "tokens of one forward pass"),
    key("batch.queue_tokens_max", SERVE, Integer(512, MANY), Value("1048576"), "tokens that may wait before clients are told to come back later; at least `api.request_tokens_max`"),
    key("batch.drain", SERVE, Duration(0, 3_600_000), Value("\"30s\""), "how long requests in flight may take after a stop"),
];

/// The key of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// Table the key stands in: `train` of `train.epochs`, `evaluate[]` of `evaluate[].task`, nothing of `kind`.
    pub fn table(&self) -> Option<&'static str> {
        self.name.split_once('.').map(|(table, _)| table)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::unit::{Bytes, Span};
        match *self {
            Version => f.write_str("1, the only version there is"),
            Boolean => f.write_str("true or false"),
            Integer(min, MANY | INTEGER_MAX) => write!(f, "a whole number from {min}"),
            Integer(min, max) => write!(f, "a whole number from {min} to {max}"),
            Number(SMALL, LARGE) => f.write_str("a number above 0"),
            Number(min, LARGE) => write!(f, "a number from {min}"),
            Number(min, max) => write!(f, "a number from {min} to {max}"),
            Choice(names) => {
                let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
                f.write_str(&quoted.join(" or "))
            }
            Text(what) | List(what) | Table(what) => f.write_str(what),
            Size(min, max) => write!(f, "a size from {} to {}", Bytes(min), Bytes(max)),
            Duration(min, max) => {
                let [min, max] = [min, max].map(|milliseconds| Span { milliseconds });
                write!(f, "a duration from {min} to {max}")
            }
        }
    }
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Required(_) => f.write_str("required"),
            Value(text) | Means(text) => f.write_str(text),
        }
    }
}
