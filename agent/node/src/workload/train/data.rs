//! What a training reads, checked before anything is computed; and rows as token ids.

use motley_backends::Backend;
use motley_ops::{ModelConfig, TrainRow};
use motley_scheduler_core::document::Train;
use motley_scheduler_core::document::train::Loss;
use motley_scheduler_core::unit::Bytes;

use crate::runner::Context;
use crate::text::{TextSettings, TextTokenizer};
use crate::workload::WorkloadError;
use crate::workload::evaluate::{TaskList, input_path};
use crate::workload::model::{OpenModel, tokenize};
use crate::workload::order::DataOrder;
use crate::workload::plan::{TrainingLengths, plan_training};
use crate::workload::rows::{RowFile, RowForm, TrainingRow};

/// All data of a train job.
pub(super) struct TrainData {
    pub(super) rows: RowFile,
    pub(super) order: DataOrder,
    pub(super) validation: Option<RowFile>,
    pub(super) tasks: TaskList,
    anchor_prompt: Option<String>,
    other_prompt: Option<String>,
}

/// Up to so many rows are tokenized once for the plan, in a few seconds; of more, each text counts as the longest.
const MEASURED_ROWS_MAX: u32 = 100_000;

/// Rows held as tokens meanwhile.
const MEASURED_WINDOW: usize = 4096;

/// Rows ready for the trainer.
#[derive(Debug, Default)]
pub(super) struct Tokenized {
    pub(super) rows: Vec<TrainRow>,
    pub(super) truncated: u64,
}

/// A loss that compares rows needs two of them, unless each brings its own negatives.
fn check_company(rows: &RowFile, loss: &Loss) -> Result<(), WorkloadError> {
    let compares = match loss {
        Loss::Cosent { .. } => true,
        Loss::Infonce { .. } => rows.texts_per_row() == 2,
        Loss::CosineSimilarity => false,
    };
    if !compares || rows.count() > 1 {
        return Ok(());
    }
    Err(WorkloadError::Unusable {
        what: format!("{} has one row, and the loss learns from the difference between rows", rows.name()),
        hint: "add rows, or a `negative` for loss `infonce`",
    })
}

impl TrainData {
    /// # Errors
    /// The first row that cannot be used, with file, line and field; too few rows for a step.
    pub(super) fn read(context: &Context, train: &Train) -> Result<TrainData, WorkloadError> {
        let (references, input) = (context.document.files(), &context.folders.input);
        let open =
            |key: &str, name: &str, form| RowFile::open(&input_path(&references, key, input), name, form);
        let rows = open("data.train", &train.data.train, RowForm::of_training(train))?;
        check_company(&rows, &train.loss)?;
        let form = RowForm::of(&train.loss);
        let validation =
            train.data.validation.as_ref().map(|name| open("data.validation", name, form)).transpose()?;
        let order = DataOrder::new(&train.steps, rows.count()).ok_or_else(|| WorkloadError::Unusable {
            what: format!(
                "{} rows of {} do not fill a batch of {}",
                rows.count(),
                rows.name(),
                train.steps.batch_size
            ),
            hint: "lower train.batch_size or set train.drop_last = false",
        })?;
        let tasks = TaskList::read(context, &train.evaluate, Default::default())?;
        let (count, steps) = (rows.count(), order.total_steps());
        context.reporter.log(&format!("{}: {count} rows, {steps} steps", rows.name()));
        Ok(TrainData {
            rows,
            order,
            validation,
            tasks,
            anchor_prompt: train.data.anchor_prompt.clone(),
            other_prompt: train.data.other_prompt.clone(),
        })
    }

    /// # Errors
    /// A prompt that the document names is not there.
    pub(super) fn check_prompts(&self, settings: &TextSettings) -> Result<(), WorkloadError> {
        settings.prompt(self.anchor_prompt.as_deref())?;
        settings.prompt(self.other_prompt.as_deref())?;
        self.tasks.check_prompts(settings)
    }

    /// What the training will need on the device, by the lengths of its own texts; refused if there is not as much.
    ///
    /// # Errors
    /// The figure does not fit, or a text cannot be tokenized.
    pub(super) fn plan(
        &self,
        context: &Context,
        train: &Train,
        open: &OpenModel,
        backend: &dyn Backend,
    ) -> Result<Bytes, WorkloadError> {
        let config = ModelConfig::parse(&open.files.config)?;
        let lengths = self.lengths(train.steps.batch_size as usize, &open.tokenizer, backend)?;
        let needed = plan_training(train, &config, lengths)?;
        let allowed = context.spec.assignment.memory;
        if allowed.0 > 0 && needed > allowed {
            let remedy = "[train] batch_size, token_budget or [model] max_length";
            return Err(WorkloadError::Memory { needed, allowed, remedy });
        }
        tracing::info!(%needed, %allowed, "device memory planned");
        Ok(needed)
    }

    /// The longest batch that the data can form, as texts a row and tokens a text.
    fn lengths(
        &self,
        batch_size: usize,
        tokenizer: &TextTokenizer,
        backend: &dyn Backend,
    ) -> Result<TrainingLengths, WorkloadError> {
        let texts_per_row = self.rows.texts_per_row();
        if self.rows.count() > MEASURED_ROWS_MAX {
            return Ok(TrainingLengths { texts_per_row, tokens_per_text: tokenizer.max_length() });
        }
        let mut totals = Vec::with_capacity(self.rows.count() as usize);
        let numbers: Vec<u32> = (0..self.rows.count()).collect();
        for window in numbers.chunks(MEASURED_WINDOW) {
            let rows = self.tokenized(&self.rows, window, tokenizer, backend)?.rows;
            totals.extend(rows.iter().map(|row| row.texts.iter().map(|text| text.ids.len()).sum::<usize>()));
        }
        totals.sort_unstable_by(|a, b| b.cmp(a));
        let longest: usize = totals.iter().take(batch_size).sum();
        let texts = batch_size.min(totals.len()) * texts_per_row;
        Ok(TrainingLengths { texts_per_row, tokens_per_text: longest.div_ceil(texts.max(1)) })
    }

    /// Reads and tokenizes rows of `file`, in the order given.
    ///
    /// # Errors
    /// The file has changed, or the tokenizer cannot process a text.
    pub(super) fn tokenized(
        &self,
        file: &RowFile,
        numbers: &[u32],
        tokenizer: &TextTokenizer,
        backend: &dyn Backend,
    ) -> Result<Tokenized, WorkloadError> {
        let rows = numbers.iter().map(|&number| file.row(number)).collect::<Result<Vec<TrainingRow>, _>>()?;
        let settings = tokenizer.settings();
        let anchors: Vec<&str> = rows.iter().map(|row| row.texts[0].as_str()).collect();
        let others: Vec<&str> =
            rows.iter().flat_map(|row| row.texts[1..].iter().map(String::as_str)).collect();
        let anchors =
            tokenize(tokenizer, backend, &anchors, settings.prompt(self.anchor_prompt.as_deref())?)?;
        let others = tokenize(tokenizer, backend, &others, settings.prompt(self.other_prompt.as_deref())?)?;
        let all = anchors.iter().chain(&others);
        let mut result =
            Tokenized { rows: Vec::new(), truncated: all.filter(|text| text.is_truncated()).count() as u64 };
        let mut others = others.into_iter();
        for ((number, row), anchor) in numbers.iter().zip(&rows).zip(anchors) {
            let mut texts = vec![anchor.text];
            texts.extend(others.by_ref().take(row.texts.len() - 1).map(|encoded| encoded.text));
            result.rows.push(TrainRow { sample: *number, texts, label: row.label });
        }
        Ok(result)
    }
}
