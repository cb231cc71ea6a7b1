//! What a training reads, checked before anything is computed; and rows as token ids.

use motley_backends::Backend;
use motley_ops::TrainRow;
use motley_scheduler_core::document::Train;
use motley_scheduler_core::document::train::Loss;
use motley_scheduler_core::unit::Bytes;

use super::nearest;
use super::validation::WINDOW_ROWS;
use crate::runner::Context;
use crate::text::{TextSettings, TextTokenizer};
use crate::workload::WorkloadError;
use crate::workload::evaluate::{TaskList, input_path};
use crate::workload::job::Job;
use crate::workload::lengths::{ByteBound, RowLengths};
use crate::workload::model::{OpenModel, tokenize};
use crate::workload::order::DataOrder;
use crate::workload::plan::{TrainingShape, plan_training};
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

/// Up to so many rows are tokenized once for the plan, in a few seconds; of more, each text counts with its bytes.
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
    if rows.count() > 1 {
        return Ok(());
    }
    let compares = match loss {
        Loss::Cosent { .. } => true,
        Loss::Infonce { .. } => rows.row(0)?.texts.len() == 2,
        Loss::CosineSimilarity => false,
    };
    if !compares {
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

    /// What the training will need on the device, by the lengths of its own texts, batch by batch; refused if there
    /// is not as much.
    ///
    /// # Errors
    /// The figure does not fit, or a text cannot be tokenized.
    pub(super) fn plan(
        &self,
        train: &Train,
        open: &OpenModel,
        job: &Job<'_>,
    ) -> Result<Bytes, WorkloadError> {
        let model = open.planned()?;
        let on = job.planned_on();
        let tokenizer = &open.tokenizer;
        let lengths = |file: &RowFile| self.lengths(file, tokenizer, &*job.backend);
        let validation = self.validation.as_ref().map(lengths).transpose()?;
        let rows = lengths(&self.rows)?;
        let shape = TrainingShape {
            step: rows.step(&train.steps, self.order),
            validation: validation
                .map_or_else(Default::default, |file| file.pairs(WINDOW_ROWS as usize, on.kind)),
            measuring: self.tasks.largest_pass(tokenizer.settings(), on.kind)?,
        };
        let needed = plan_training(train, &model, on, shape)?;
        job.check_memory(needed, |allowed| {
            let needs = |train: &Train| {
                let shape = TrainingShape { step: rows.step(&train.steps, self.order), ..shape };
                plan_training(train, &model, on, shape).ok()
            };
            nearest::setting_that_fits(train, &model.config, allowed, &needs)
        })?;
        Ok(needed)
    }

    fn lengths(
        &self,
        file: &RowFile,
        tokenizer: &TextTokenizer,
        backend: &dyn Backend,
    ) -> Result<RowLengths, WorkloadError> {
        if file.count() > MEASURED_ROWS_MAX {
            let settings = tokenizer.settings();
            let prompt = |name: &Option<String>| settings.prompt(name.as_deref()).map(str::len);
            let prompts = [prompt(&self.anchor_prompt)?, prompt(&self.other_prompt)?];
            let bound = ByteBound { longest: tokenizer.max_length(), prompts };
            return Ok(RowLengths::by_bytes(file, bound)?);
        }
        let mut lengths = RowLengths::default();
        let numbers: Vec<u32> = (0..file.count()).collect();
        for window in numbers.chunks(MEASURED_WINDOW) {
            for row in self.tokenized(file, window, tokenizer, backend)?.rows {
                lengths.push(row.texts.iter().map(|text| text.ids.len()));
            }
        }
        Ok(lengths)
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
