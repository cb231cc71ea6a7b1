//! What train, evaluate and serve jobs share: the device, and the model that their document names.

use std::sync::Arc;

use motley_backends::Backend;
use motley_scheduler_core::document::{AdapterReference, Model};
use motley_scheduler_core::wire::agent::Progress;

use super::WorkloadError;
use super::identity::AdapterFiles;
use super::model::{OpenModel, adapter_folder, open_device, open_model, places};
use crate::models::Fetched;
use crate::runner::Context;

/// A job with its device open.
pub(crate) struct Job<'a> {
    context: &'a Context,
    pub(crate) backend: Arc<dyn Backend>,
}

impl Job<'_> {
    /// # Errors
    /// The device cannot be opened.
    pub(crate) fn new(context: &Context) -> Result<Job<'_>, WorkloadError> {
        let assignment = &context.spec.assignment;
        let asked = context.document.resources.iter().find(|each| each.backend.contains(&assignment.backend));
        let threads = asked.and_then(|resources| resources.threads).unwrap_or(context.spec.threads);
        let threads = threads.min(context.spec.threads);
        let backend = open_device(assignment.backend, Some(threads), assignment.memory)?;
        tracing::info!(device = backend.info().name, threads = backend.info().threads, "device open");
        Ok(Job { context, backend })
    }

    /// The document's model, opened.
    ///
    /// # Errors
    /// As [`open_model`].
    pub(crate) fn open_model(
        &self,
        model: &Model,
        adapter: Option<&AdapterFiles>,
    ) -> Result<OpenModel, WorkloadError> {
        let reporter = &self.context.reporter;
        let mut progress = |fetched: Fetched| {
            reporter.progress(Progress {
                activity: format!("downloading {}", fetched.what),
                done: fetched.bytes,
                total: fetched.total,
                unit: "byte".to_owned(),
                ..Progress::default()
            });
        };
        let settings = &self.context.spec.settings.models;
        let open = open_model(model, adapter, settings, &places(&self.context.folders), &mut progress)?;
        reporter.log(&format!("model {} (weights {})", open.folder.origin, open.folder.weights_sha256));
        Ok(open)
    }

    /// # Errors
    /// The folder is no adapter.
    pub(crate) fn adapter(&self, reference: &AdapterReference) -> Result<AdapterFiles, WorkloadError> {
        Ok(AdapterFiles::read(&adapter_folder(reference, &self.context.folders))?)
    }
}
