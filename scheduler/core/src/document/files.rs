//! Which files a document names: what `ctl submit` uploads, and what the node finds in the job's input folder.

use super::Document;

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
    /// Every file and folder that the document names, in the order of the document.
    pub fn files(&self) -> Vec<FileReference> {
        super::parse::files(self)
    }
}
