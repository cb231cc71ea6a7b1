//! `ctl bench`: how fast a device is. Lines are JSON with or without `--json`: measurements are read by programs.

use motley_agent_node::workload::bench::{
    BenchLoss, BenchOptions, Subject, TOKEN_BUDGET, TRAIN_STEPS, TrainingOptions,
};
use motley_agent_node::workload::{bench_encode, bench_kernels, bench_train};
use motley_scheduler_core::document::Quantization;
use serde_json::Value;

use crate::arguments::{
    AdapterName, BenchArguments, BenchCommand, BenchEncodeArguments, BenchKernelsArguments,
    BenchTrainArguments, LossName,
};
use crate::failure::Failure;
use crate::local::{device, failure, model, must_be_file, settings, with_downloads};
use crate::output::Output;

/// Measures and prints.
pub fn run(command: BenchCommand, output: &Output) -> Result<(), Failure> {
    match command {
        BenchCommand::Encode(arguments) => encode(arguments, output),
        BenchCommand::Train(arguments) => train(arguments, output),
        BenchCommand::Kernels(arguments) => kernels(&arguments, output),
    }
}

fn encode(arguments: BenchEncodeArguments, output: &Output) -> Result<(), Failure> {
    let quantization = arguments.common.quantization.map(|_| NF4);
    let training = TrainingOptions {
        steps: TRAIN_STEPS,
        tokens_per_step: None,
        loss: BenchLoss::Cosent,
        token_budget: TOKEN_BUDGET,
        checkpoint_layers: false,
    };
    let options = options(arguments.common, quantization, training)?;
    let options = BenchOptions { pass_tokens: arguments.pass_tokens, ..options };
    let line = with_downloads(output, |progress| bench_encode(&options, progress))?;
    print_line(serde_json::to_value(line), output)
}

fn train(arguments: BenchTrainArguments, output: &Output) -> Result<(), Failure> {
    let quantization = match (arguments.adapter, arguments.common.quantization) {
        (Some(AdapterName::Lora), Some(_)) => {
            return Err(Failure::usage("--adapter lora has no quantized base")
                .hint("leave out --quantization, or take --adapter qlora"));
        }
        (Some(AdapterName::Qlora), _) | (None, Some(_)) => Some(NF4),
        (Some(AdapterName::Lora) | None, None) => None,
    };
    let training = TrainingOptions {
        steps: arguments.steps,
        tokens_per_step: arguments.tokens_per_step,
        loss: match arguments.loss {
            LossName::Cosent => BenchLoss::Cosent,
            LossName::Infonce => BenchLoss::Infonce,
        },
        token_budget: arguments.token_budget,
        checkpoint_layers: arguments.checkpoint_layers,
    };
    let options = options(arguments.common, quantization, training)?;
    let line = with_downloads(output, |progress| bench_train(&options, progress))?;
    print_line(serde_json::to_value(line), output)
}

fn kernels(arguments: &BenchKernelsArguments, output: &Output) -> Result<(), Failure> {
    let sizes = [arguments.length, arguments.texts];
    let lines = bench_kernels(&device(&arguments.device)?, &arguments.shape, sizes).map_err(failure)?;
    lines.iter().try_for_each(|line| print_line(serde_json::to_value(line), output))
}

const NF4: Quantization = Quantization::Nf4 { double_quantization: true };

fn options(
    common: BenchArguments,
    quantization: Option<Quantization>,
    training: TrainingOptions,
) -> Result<BenchOptions, Failure> {
    let subject = match (common.random_weights, common.model, common.data) {
        (Some(shape), ..) => Subject::Random { shape, length: common.length, texts: common.texts },
        (None, Some(source), Some(data)) => {
            must_be_file(&data, "name a JSON lines file with sentence1, sentence2 and score")?;
            let model = Box::new(model(&source, common.max_length)?);
            Subject::Model { model, settings: Box::new(settings()?), data }
        }
        _ => return Err(Failure::usage("neither MODEL and --data nor --random-weights is given")),
    };
    let device = device(&common.device)?;
    Ok(BenchOptions { subject, quantization, device, pass_tokens: None, training })
}

fn print_line(line: serde_json::Result<Value>, output: &Output) -> Result<(), Failure> {
    output.json_line(&line.map_err(Failure::failed)?);
    Ok(())
}
