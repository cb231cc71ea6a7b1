//! Which files a document names: what `ctl submit` uploads, and what the node finds in the job's input folder.

use super::{AdapterReference, Document, Source, Task, TaskKind, Workload};

/// Key of the model's folder when that is a `file:` source.
pub const MODEL_SOURCE: &str = "model.source";

/// Key of a fallback's folder when that is a `file:` source.
pub fn fallback_key(index: usize) -> String {
    format!("model.fallbacks.{index}")
}

/// A file or folder that the document names, relative to the document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileReference {
    /// Key in the document, for messages: `data.train`.
    pub key: String,
    /// As written in the document.
    pub path: String,
    pub role: FileRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileRole {
    /// One file.
    File,
    /// Every file below.
    Folder,
}

impl FileReference {
    /// Where the file (or the folder's content, with `/` and the relative path appended) lies in the job's
    /// input folder: the key, so that documents may name paths outside their own folder.
    /// `data.train` of `../corpus/a.jsonl` is `data.train/a.jsonl`; a folder `data` of `evaluate.0` is `evaluate.0.data`.
    pub fn input_path(&self) -> String {
        match self.role {
            FileRole::Folder => self.key.clone(),
            FileRole::File => {
                let name = self.path.rsplit('/').next().unwrap_or(&self.path);
                format!("{}/{name}", self.key)
            }
        }
    }
}

impl Document {
    /// Every file and folder that the document names: data first, then model, adapter and keys.
    pub fn files(&self) -> Vec<FileReference> {
        let mut files = Vec::new();
        let mut add =
            |key: String, path: &str, role| files.push(FileReference { key, path: path.to_owned(), role });
        let tasks: &[Task] = match &self.workload {
            Workload::Train(train) => {
                add("data.train".into(), &train.data.train, FileRole::File);
                if let Some(path) = &train.data.validation {
                    add("data.validation".into(), path, FileRole::File);
                }
                &train.evaluate
            }
            Workload::Evaluate(evaluate) => &evaluate.tasks,
            Workload::Serve(serve) => {
                if let Some(path) = &serve.api.keys_file {
                    add("api.keys_file".into(), path, FileRole::File);
                }
                &[]
            }
        };
        for (index, task) in tasks.iter().enumerate() {
            let role = match task.kind {
                TaskKind::Sts | TaskKind::PairClassification => FileRole::File,
                TaskKind::Retrieval => FileRole::Folder,
            };
            add(format!("evaluate.{index}.data"), &task.data, role);
        }
        let model = self.model();
        if let Source::File { path } = &model.source {
            add(MODEL_SOURCE.into(), path, FileRole::Folder);
        }
        for (index, source) in model.fallbacks.iter().enumerate() {
            if let Source::File { path } = source {
                add(fallback_key(index), path, FileRole::Folder);
            }
        }
        if let Some(AdapterReference { source: Source::File { path }, .. }) = self.adapter() {
            add("adapter.source".into(), path, FileRole::Folder);
        }
        files
    }
}
