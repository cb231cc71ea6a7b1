//! Arguments of the commands that work on this machine: run, embed, export, compare, bench, doctor, daemons.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use motley_agent_node::workload::bench::{TOKEN_BUDGET, TRAIN_STEPS, TRAIN_STEPS_MAX};
use motley_scheduler_core::document::{BackendKind, ModelPrecision};
use motley_scheduler_core::unit::Span;

use super::{Setting, parse_setting};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl run examples/finance/train.toml\n  \
    ctl run train.toml --output ./result --set train.epochs=3 --set adapter.rank=16")]
pub struct RunArguments {
    /// The job document.
    #[arg(value_name = "FILE")]
    pub document: PathBuf,
    /// Where everything that the job makes goes [default: ./<job name>-output].
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Override a key of the document; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub settings: Vec<Setting>,
    /// Compute on this family of devices, whatever the document says; auto: on the device measured to be the fastest.
    #[arg(long, value_enum)]
    pub backend: Option<BackendName>,
    /// Which of the backend's devices, as `ctl devices` counts them, whatever the document says.
    #[arg(long, value_name = "INDEX")]
    pub device: Option<u32>,
    /// What activations are kept in, whatever the document says.
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionName>,
}

/// A family of devices on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    Auto,
    Cuda,
    Wgpu,
    Cpu,
}

impl BackendName {
    /// None is `auto`.
    pub fn kind(self) -> Option<BackendKind> {
        match self {
            BackendName::Auto => None,
            BackendName::Cuda => Some(BackendKind::Cuda),
            BackendName::Wgpu => Some(BackendKind::Wgpu),
            BackendName::Cpu => Some(BackendKind::Cpu),
        }
    }
}

/// What activations are kept in, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    Auto,
    F32,
    Bf16,
}

impl From<PrecisionName> for ModelPrecision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::Auto => ModelPrecision::Auto,
            PrecisionName::F32 => ModelPrecision::F32,
            PrecisionName::Bf16 => ModelPrecision::Bf16,
        }
    }
}

/// Where a command computes.
#[derive(Debug, Args)]
pub struct DeviceArguments {
    /// Family of devices; auto: the device measured to be the fastest.
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub backend: BackendName,
    /// Which of the backend's devices, as `ctl devices` counts them [default: the first].
    #[arg(long, value_name = "INDEX", requires = "backend")]
    pub device: Option<u32>,
    /// What activations are kept in; auto: bf16 on cuda where the card has it, else f32.
    #[arg(long, value_enum, default_value_t = PrecisionName::Auto)]
    pub precision: PrecisionName,
    /// Worker threads of the cpu [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl embed sentence-transformers/all-MiniLM-L6-v2 texts.txt --output texts.npy\n  \
    ctl embed file:./model rows.jsonl --adapter ./result/adapter --output vectors.jsonl"
)]
pub struct EmbedArguments {
    /// What `[model] source` takes: a hub id, modelscope:ID, file:PATH, pip:PACKAGE.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// A text a line, or JSON lines with a `text` field (by the ending .jsonl).
    #[arg(value_name = "INPUT")]
    pub input: PathBuf,
    /// OUT.npy (float32, one row a text) or OUT.jsonl.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// A PEFT adapter folder on top of the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Run the adapter on the full-precision base, whatever base it was trained on.
    #[arg(long, requires = "adapter")]
    pub full_precision: bool,
    /// Name of the prompt put before every text.
    #[arg(long, value_name = "NAME")]
    pub prompt: Option<String>,
    /// Longest text in tokens [default: what the model says].
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<u32>,
    #[command(flatten)]
    pub device: DeviceArguments,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ctl export sentence-transformers/all-MiniLM-L6-v2 --adapter ./result/adapter \
    --output ./merged"
)]
pub struct ExportArguments {
    /// The base model: what `[model] source` takes.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The PEFT adapter folder to merge.
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The new folder.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Merge a QLoRA adapter into the full-precision base instead of the dequantized one it was trained on.
    #[arg(long)]
    pub full_precision: bool,
}

#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Compare two reports task by task; exits 1 when a task of B is worse than A's by more than the tolerance.
    Compare(CompareArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  ctl evaluate compare base/report.json tuned/report.json --tolerance 0.005"
)]
pub struct CompareArguments {
    /// The report (or its folder) to compare with.
    #[arg(value_name = "A")]
    pub baseline: PathBuf,
    /// The report (or its folder) to judge.
    #[arg(value_name = "B")]
    pub candidate: PathBuf,
    /// How much lower B's figure may be, from 0: cosine_spearman of sts, cosine_ap of pair_classification, ndcg_at_10
    /// of retrieval.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub tolerance: f64,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure embedding: throughput, latency, memory.
    Encode(BenchEncodeArguments),
    /// Measure a training step: samples and tokens a second, memory.
    Train(BenchTrainArguments),
    /// Measure each product and kernel of a layer by itself; prints a JSON line for each.
    Kernels(BenchKernelsArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "share_of_peak is operations a second over the rate of a large square product, measured right before in \
    the same precision. Operations: 2 a weight of linear layers and token; attention 4·length·heads·head_dim a token and \
    layer, half of it if causal. Training: 2·linear + 3·attention, and one forward pass more for checkpointed layers and \
    for steps above --token-budget.\n\nExamples:\n  ctl bench encode sentence-transformers/all-MiniLM-L6-v2 --data test.jsonl --threads 2\n  \
    ctl bench encode --random-weights bge-base --length 512 --texts 256 --backend cuda"
)]
pub struct BenchEncodeArguments {
    #[command(flatten)]
    pub common: BenchArguments,
    /// Tokens computed at once [default: what suits the device].
    #[arg(long, value_name = "N")]
    pub pass_tokens: Option<u32>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl bench train sentence-transformers/all-MiniLM-L6-v2 --data train.jsonl\n  \
    ctl bench train file:./model --data train.jsonl --adapter qlora --threads 2\n  \
    ctl bench train --random-weights bge-large --length 512 --tokens-per-step 8192 --quantization nf4 \
    --checkpoint-layers"
)]
pub struct BenchTrainArguments {
    #[command(flatten)]
    pub common: BenchArguments,
    /// What is trained [default: lora, or qlora with --quantization].
    #[arg(long, value_enum)]
    pub adapter: Option<AdapterName>,
    /// What is minimised.
    #[arg(long, value_enum, default_value_t = LossName::Cosent)]
    pub loss: LossName,
    /// Measured steps, of 32 pairs each.
    #[arg(long, value_name = "N", default_value_t = TRAIN_STEPS,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(TRAIN_STEPS_MAX)))]
    pub steps: u32,
    /// Tokens of a step, with --random-weights [default: 32 pairs].
    #[arg(long, value_name = "N", requires = "random_weights")]
    pub tokens_per_step: Option<u32>,
    /// Tokens computed at once; a step of more is cut into chunks that run twice.
    #[arg(long, value_name = "N", default_value_t = TOKEN_BUDGET)]
    pub token_budget: u32,
    /// Keep each layer's input only, and run it again on the way back.
    #[arg(long)]
    pub checkpoint_layers: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl bench kernels\n  ctl bench kernels --shape bge-large --length 512 --texts 32 --backend cuda"
)]
pub struct BenchKernelsArguments {
    /// The model whose sizes are taken.
    #[arg(long, value_name = "SHAPE", default_value = "bge-base")]
    pub shape: String,
    /// Tokens of a text.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub length: u32,
    /// Texts computed together.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub texts: u32,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// What measurements of models need.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// What `[model] source` takes.
    #[arg(
        value_name = "MODEL",
        required_unless_present = "random_weights",
        conflicts_with = "random_weights"
    )]
    pub model: Option<String>,
    /// JSON lines with sentence1, sentence2 and score.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "random_weights",
        conflicts_with = "random_weights"
    )]
    pub data: Option<PathBuf>,
    /// Longest text in tokens [default: what the model says].
    #[arg(long, value_name = "TOKENS", conflicts_with = "random_weights")]
    pub max_length: Option<u32>,
    /// Random weights of a well-known shape and random tokens instead: minilm, bge-base and others.
    #[arg(long, value_name = "SHAPE")]
    pub random_weights: Option<String>,
    /// Tokens of a random text.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub length: u32,
    /// Random texts.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub texts: u32,
    /// How the base is kept.
    #[arg(long, value_enum)]
    pub quantization: Option<QuantizationName>,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// How frozen weights are kept, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizationName {
    Nf4,
}

/// What is minimised, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LossName {
    Cosent,
    Infonce,
}

/// What is trained, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AdapterName {
    Lora,
    Qlora,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl devices\n  ctl devices --no-measure --json")]
pub struct DevicesArguments {
    /// Show what was measured before, and measure nothing.
    #[arg(long)]
    pub no_measure: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ctl doctor\n  ctl doctor --json")]
pub struct DoctorArguments {
    /// Do not ask model hubs and package registries whether they can be reached.
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl scheduler\n  ctl scheduler --state /var/lib/motley/scheduler --listen 0.0.0.0:7443"
)]
pub struct SchedulerArguments {
    /// Where jobs, artifacts, logs and the authority are kept [default: motley/scheduler in your data folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Address and UDP port to listen on; port 0 for a free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// Address that nodes and users on other machines are told to dial [default: where it listens, by this machine's
    /// name when that is everywhere].
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// How often agents report.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub beat: Span,
    /// A node that was silent for so long gets no new work; twice the beat at least.
    #[arg(long, value_name = "TIME", default_value = "15s")]
    pub suspect_after: Span,
    /// The jobs of a node that was silent for so long go elsewhere; leases are as long.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub lost_after: Span,
    /// How long a job goes on computing while its node cannot reach the scheduler, past its lease.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub keep_running: Span,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ctl agent --scheduler fleet.example.org:7443 --token motley1.5f0c...\n  \
    ctl agent --scheduler fleet.example.org:7443"
)]
pub struct AgentArguments {
    /// Address of the scheduler.
    #[arg(long, value_name = "HOST:PORT")]
    pub scheduler: String,
    /// A token made by `ctl token create`; needed at the first start only.
    #[arg(long)]
    pub token: Option<String>,
    /// Where the certificate, models and attempts are kept [default: motley/agent in your data folder].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The node's name for people [default: the machine's].
    #[arg(long)]
    pub name: Option<String>,
    /// Worker threads of the cpu device [default: all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
}

/// One folder.
#[derive(Debug, Args)]
pub struct FolderArguments {
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}
