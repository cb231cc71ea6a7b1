//! Sentence pairs and job documents for tests, from a fixed seed.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::model::{WORDS, uniform};

/// `rows` scored pairs. The score is the share of common words, so that there is something to learn.
pub fn pairs(rows: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut word = || {
        let share = (uniform(&mut state) + 1.0) / 2.0;
        WORDS[((share * WORDS.len() as f32) as usize).min(WORDS.len() - 1)]
    };
    let mut text = String::new();
    for row in 0..rows {
        let first: Vec<&str> = (0..6).map(|_| word()).collect();
        let common = row % 6;
        let second: Vec<&str> = (0..6).map(|at| if at < common { first[at] } else { word() }).collect();
        let score = common as f64 / 5.0;
        let line = json!({ "sentence1": first.join(" "), "sentence2": second.join(" "), "score": score });
        text.push_str(&line.to_string());
        text.push('\n');
    }
    text
}

/// A folder with a train document, its data and a model.
#[derive(Debug)]
pub struct Project {
    pub folder: PathBuf,
}

/// What a train document varies in.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub name: &'static str,
    pub adapter: &'static str,
    pub rows: usize,
    pub epochs: u32,
    pub seed: u64,
    /// Optimizer steps between checkpoints.
    pub checkpoint_steps: u32,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions { name: "tiny", adapter: "lora", rows: 96, epochs: 2, seed: 7, checkpoint_steps: 5 }
    }
}

impl TrainOptions {
    /// Batches of 4 rows, 2 of them a step.
    pub fn steps(&self) -> u64 {
        self.rows.div_ceil(8) as u64 * u64::from(self.epochs)
    }
}

impl Project {
    /// With the tiny model.
    pub fn tiny(folder: &Path) -> Project {
        crate::model::write_tiny(&folder.join("model"));
        Project { folder: folder.to_path_buf() }
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("a test file can be written");
        path
    }

    /// `train.toml`, with everything that makes resuming hard: dropout, accumulation, several epochs, shuffling.
    pub fn train(&self, options: &TrainOptions) -> PathBuf {
        self.write("train.jsonl", &pairs(options.rows, 11));
        self.write("test.jsonl", &pairs(60, 23));
        let TrainOptions { name, adapter, epochs, seed, checkpoint_steps, .. } = options;
        self.write(
            &format!("{name}.toml"),
            &format!(
                "version = 1\nkind = \"train\"\nname = \"{name}\"\n\n\
                 [resources]\nbackend = [\"cpu\"]\nmemory = \"256MiB\"\nthreads = 1\n\n\
                 [model]\nsource = \"file:model\"\nmax_length = 32\ndropout = \"config\"\n\n\
                 [adapter]\nkind = \"{adapter}\"\nrank = 4\nalpha = 8\ndropout = 0.1\n\n\
                 [data]\ntrain = \"train.jsonl\"\n\n\
                 [loss]\nkind = \"cosent\"\n\n\
                 [optimizer]\nlearning_rate = 1e-3\n\n\
                 [schedule]\nkind = \"linear\"\nwarmup = 0.1\n\n\
                 [train]\nepochs = {epochs}\nbatch_size = 4\naccumulation_steps = 2\nseed = {seed}\nlog_every = 1\n\n\
                 [checkpoint]\nevery = \"{checkpoint_steps} steps\"\nkeep = 2\n\n\
                 [[evaluate]]\ntask = \"sts\"\ndata = \"test.jsonl\"\n"
            ),
        )
    }

    pub fn evaluate(&self) -> PathBuf {
        self.write("test.jsonl", &pairs(60, 23));
        self.write(
            "evaluate.toml",
            "version = 1\nkind = \"evaluate\"\nname = \"measure\"\n\n\
             [resources]\nbackend = [\"cpu\"]\nmemory = \"256MiB\"\nthreads = 1\n\n\
             [model]\nsource = \"file:model\"\n\n\
             [bootstrap]\nresamples = 100\n\n\
             [[evaluate]]\ntask = \"sts\"\ndata = \"test.jsonl\"\n",
        )
    }

    pub fn serve(&self) -> PathBuf {
        self.write(
            "serve.toml",
            "version = 1\nkind = \"serve\"\nname = \"vectors\"\n\n\
             [resources]\nbackend = [\"cpu\"]\nmemory = \"256MiB\"\nthreads = 1\n\n\
             [model]\nsource = \"file:model\"\n\n\
             [api]\nlisten = \"127.0.0.1:0\"\n",
        )
    }
}
