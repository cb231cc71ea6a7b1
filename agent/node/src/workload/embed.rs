//! `ctl embed`: the vectors of a file of texts, in order, in constant memory, without any server.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use motley_backends::Backend;
use motley_ops::{LoraConfig, PassShape};
use motley_scheduler_core::document::model::AdapterBase;
use motley_scheduler_core::document::{Model, Quantization};
use serde::Serialize;

use super::WorkloadError;
use super::identity::AdapterFiles;
use super::model::{TextModel, embed_window, open_model, shown_seconds};
use super::plan::{EmbeddingShape, Planned, plan_embedding, planned_on};
use super::vectors::{Format, VectorFile, partial_of};
use crate::devices::DeviceChoice;
use crate::models::{Fetched, ModelSettings, Places, unstoppable};
use crate::runner::StopFlag;
use crate::text::{DataError, Lines, Place, Row};

/// What to embed, with what, and where to.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    pub model: Model,
    pub settings: ModelSettings,
    /// Adapter folder, and the base it is to run on.
    pub adapter: Option<(PathBuf, AdapterBase)>,
    /// Quantize the base; with an adapter its own base decides.
    pub quantization: Option<Quantization>,
    /// Name of the prompt put before every text.
    pub prompt: Option<String>,
    /// Plain lines, or JSON lines with a `text` field (`.jsonl`).
    pub input: PathBuf,
    /// `.npy` or `.jsonl`.
    pub output: PathBuf,
    pub device: DeviceChoice,
}

/// What embedding a file came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EmbedSummary {
    pub texts: u64,
    pub dimensions: usize,
    pub tokens: u64,
    pub truncated: u64,
    /// Of the whole command; loading the model included.
    pub seconds: f64,
    /// Of tokenizing, embedding and writing alone.
    pub embedding_seconds: f64,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq)]
pub enum EmbedProgress {
    Downloading(Fetched),
    Embedding { texts: u64, bytes: u64, bytes_total: u64, tokens_per_second: f64 },
}

/// Texts held at once.
const WINDOW_TEXTS: usize = 2048;

/// Bytes of text held at once; a window ends at the first text that passes it.
const WINDOW_BYTES: usize = 4 << 20;

/// Opens the device.
type Device<'a> = &'a dyn Fn() -> Result<Arc<dyn Backend>, WorkloadError>;

/// A file about to be embedded: its model is loaded, nothing is written yet.
pub struct Embedding<'a> {
    options: &'a EmbedOptions,
    format: Format,
    texts: Texts,
    model: TextModel,
    planned: Planned,
    prompt: String,
    began: Instant,
}

impl Embedding<'_> {
    /// Looks at input and output, then loads the model.
    ///
    /// # Errors
    /// Model, adapter, input or output that cannot be used.
    pub fn open<'a>(
        options: &'a EmbedOptions,
        progress: &mut dyn FnMut(EmbedProgress),
    ) -> Result<Embedding<'a>, WorkloadError> {
        Self::open_with(options, &|| Ok(options.device.open()?.backend), progress)
    }

    /// [`Embedding::open`] on a device of the caller's, which is opened when the model is there.
    pub(super) fn open_with<'a>(
        options: &'a EmbedOptions,
        device: Device<'_>,
        progress: &mut dyn FnMut(EmbedProgress),
    ) -> Result<Embedding<'a>, WorkloadError> {
        let began = Instant::now();
        let format = Format::of(&options.output).ok_or_else(|| WorkloadError::Unusable {
            what: format!("{} ends neither in .npy nor in .jsonl", options.output.display()),
            hint: "the ending of --output says which format is written",
        })?;
        let texts = Texts::open(&options.input)?;
        check_output(&options.input, &options.output)?;
        // What cannot be written is better known before the model is fetched.
        drop(VectorFile::create(&options.output, format, 1)?);
        let (model, planned) = load(options, device, progress)?;
        let prompt = model.tokenizer.settings().prompt(options.prompt.as_deref())?.to_owned();
        Ok(Embedding { options, format, texts, model, planned, prompt, began })
    }

    /// Embeds a window after the other until the end, or until it is to stop.
    ///
    /// # Errors
    /// A row or a device that cannot be used; the stop. No output is left behind then.
    pub fn run(
        mut self,
        stop: &StopFlag,
        progress: &mut dyn FnMut(EmbedProgress),
    ) -> Result<EmbedSummary, WorkloadError> {
        let model = &self.model;
        let mut file = VectorFile::create(&self.options.output, self.format, model.hidden())?;
        let (mut tokens, mut truncated, mut done) = (0, 0, 0);
        let started = Instant::now();
        loop {
            if stop.is_set() {
                return Err(WorkloadError::Stopped);
            }
            let Window { texts: window, places } = self.texts.window()?;
            if window.is_empty() {
                break;
            }
            let texts = (&window[..], &*self.prompt);
            let part = embed_window(&model.encoder, &model.tokenizer, &*model.backend, texts);
            let part = part.map_err(|error| match error {
                WorkloadError::Compute(motley_ops::Error::NonFiniteEmbedding { index }) => {
                    WorkloadError::NonFiniteVector { place: places[index].clone() }
                }
                other => self.planned.explain(other, &*model.backend),
            })?;
            file.write(&part.vectors)?;
            tokens += part.tokens;
            truncated += part.truncated;
            done += window.len() as u64;
            progress(EmbedProgress::Embedding {
                texts: done,
                bytes: self.texts.lines.bytes_read(),
                bytes_total: self.texts.bytes_total,
                tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64(),
            });
        }
        Ok(EmbedSummary {
            texts: file.finish()?,
            dimensions: model.hidden(),
            tokens,
            truncated,
            seconds: self.began.elapsed().as_secs_f64(),
            embedding_seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// The input is no place to write to, whatever the two are called.
fn check_output(input: &Path, output: &Path) -> Result<(), WorkloadError> {
    let unusable = |what: String, hint| Err(WorkloadError::Unusable { what, hint });
    if output.is_dir() {
        let what = format!("{} is a folder", output.display());
        return unusable(what, "--output names the file that is written");
    }
    let input = input.canonicalize().ok();
    let is_input = |path: &Path| input.is_some() && path.canonicalize().ok() == input;
    if is_input(output) || is_input(&partial_of(output)) {
        let what = format!("{} is the input", output.display());
        return unusable(what, "name another file with --output: the input would be written over");
    }
    Ok(())
}

/// The model, and what it was planned to need.
fn load(
    options: &EmbedOptions,
    device: Device<'_>,
    progress: &mut dyn FnMut(EmbedProgress),
) -> Result<(TextModel, Planned), WorkloadError> {
    let adapter = options.adapter.as_ref();
    let adapter = adapter.map(|(folder, base)| Ok::<_, WorkloadError>((AdapterFiles::read(folder)?, *base)));
    let adapter = adapter.transpose()?;
    let files = adapter.as_ref().map(|(files, _)| files);
    let mut fetched = |fetched: Fetched| progress(EmbedProgress::Downloading(fetched));
    let mut fetched = unstoppable(&mut fetched);
    let open = open_model(&options.model, files, &options.settings, &Places::default(), &mut fetched)?;
    let backend = device()?;
    let (quantization, lora) = match &adapter {
        Some((files, base)) => {
            let own = files.quantization(*base, &open.folder.weights_sha256.to_string())?;
            (own, Some(LoraConfig::from_peft(&files.config)?))
        }
        None => (options.quantization, None),
    };
    let (on, longest) = (planned_on(&*backend), open.tokenizer.max_length());
    let pass = PassShape::bound_of_embedding(on.kind, WINDOW_TEXTS, longest, usize::MAX);
    let shape = EmbeddingShape { quantization, adapter: lora, pass, recorded: false };
    let planned = Planned::embedding(plan_embedding(&open.planned()?, on, &shape)?);
    let model = match &adapter {
        Some((files, base)) => open.load_with_adapter(&backend, files, *base),
        None => open.load(&backend, options.quantization, false),
    };
    Ok((model.map_err(|error| planned.explain(error, &*backend))?, planned))
}

impl EmbedSummary {
    /// `12000 texts, 384 dimensions, 5321 tokens/s, 31.9 s`.
    pub fn describe(&self) -> String {
        let speed = self.tokens as f64 / self.embedding_seconds.max(1e-9);
        let truncated = match self.truncated {
            0 => String::new(),
            count => format!(", {count} cut to max_length"),
        };
        let (texts, dimensions) = (self.texts, self.dimensions);
        format!(
            "{texts} texts{truncated}, {dimensions} dimensions, {speed:.0} tokens/s, {}",
            shown_seconds(self.seconds)
        )
    }
}

/// Texts that are held at once, each with where it stands.
#[derive(Debug, Default)]
struct Window {
    texts: Vec<String>,
    places: Vec<Place>,
}

/// The texts of a file, a window at a time.
struct Texts {
    lines: Lines,
    json: bool,
    bytes_total: u64,
}

impl Texts {
    fn open(path: &Path) -> Result<Texts, WorkloadError> {
        let name = path.display().to_string();
        let bytes_total = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let json = path.extension().is_some_and(|ending| ending == "jsonl");
        Ok(Texts { lines: Lines::open(path, &name)?, json, bytes_total })
    }

    /// The next texts; none at the end. A blank line is an empty text, which has a vector like any other; in JSON
    /// lines it is skipped.
    fn window(&mut self) -> Result<Window, DataError> {
        let (mut window, mut bytes) = (Window::default(), 0);
        while window.texts.len() < WINDOW_TEXTS && bytes < WINDOW_BYTES {
            let Some((place, line)) = self.lines.next_line()? else { break };
            if self.json && line.trim().is_empty() {
                continue;
            }
            let text = if self.json {
                Row::parse(place.clone(), line)?.any_text("text")?.to_owned()
            } else {
                line.to_owned()
            };
            bytes += text.len();
            window.texts.push(text);
            window.places.push(place);
        }
        Ok(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(name: &str, content: &str) -> Result<Vec<Vec<String>>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let mut texts = Texts::open(&path).unwrap();
        let mut windows = Vec::new();
        loop {
            let window = texts.window()?.texts;
            if window.is_empty() {
                return Ok(windows);
            }
            windows.push(window);
        }
    }

    #[test]
    fn lines_and_json_lines_are_read() {
        assert_eq!(windows("a.txt", "one\n\ntwo").unwrap(), [["one", "", "two"]]);
        let json = "{\"text\": \"one\"}\n\n{\"text\": \"\", \"id\": 7}\n";
        assert_eq!(windows("a.jsonl", json).unwrap(), [["one", ""]]);
        let message = windows("a.jsonl", "{\"text\": \"x\"}\n{\"texts\": \"y\"}").unwrap_err().to_string();
        assert!(message.contains("a.jsonl line 2: field `text` is missing"), "{message}");
        assert!(windows("a.txt", "").unwrap().is_empty());
    }

    #[test]
    fn bytes_are_those_of_the_file_whatever_ends_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in
            [("a.txt", "one\r\ntwo\r\n"), ("b.txt", "one\ntwo"), ("c.jsonl", "\u{feff}\n\n")]
        {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            let mut texts = Texts::open(&path).unwrap();
            while !texts.window().unwrap().texts.is_empty() {}
            assert_eq!(texts.lines.bytes_read(), texts.bytes_total, "{name}");
            assert_eq!(texts.bytes_total, content.len() as u64);
        }
    }

    #[test]
    fn the_input_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a.jsonl"), "{}").unwrap();
        fs::write(path(".partial-b.jsonl"), "{}").unwrap();
        std::os::unix::fs::symlink(path("a.jsonl"), path("link.jsonl")).unwrap();
        let check = |input: &str, output: &str| check_output(&path(input), &path(output));
        for (input, output) in [
            ("a.jsonl", "a.jsonl"),
            ("a.jsonl", "link.jsonl"),
            ("a.jsonl", "./a.jsonl"),
            (".partial-b.jsonl", "b.jsonl"),
        ] {
            let message = check(input, output).unwrap_err().to_string();
            assert!(message.contains("is the input\nhint:"), "{message}");
        }
        assert!(check("a.jsonl", "new.jsonl").is_ok());
        assert!(check("a.jsonl", "").unwrap_err().to_string().contains("is a folder"));
    }

    #[test]
    fn windows_are_bounded() {
        let many = windows("a.txt", &"x\n".repeat(5000)).unwrap();
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [2048, 2048, 904]);
        let long = windows("a.txt", &format!("{}\n", "x".repeat(3 << 20)).repeat(3)).unwrap();
        assert_eq!(long.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }
}
