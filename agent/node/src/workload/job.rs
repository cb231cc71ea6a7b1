//! What train, evaluate and serve jobs share: the device, and the model that their document names.

use std::ops::ControlFlow;
use std::sync::Arc;

use motley_backends::Backend;
use motley_ops::{LoraConfig, PassShape, PlannedDevice};
use motley_scheduler_core::document::{
    AdapterReference, BackendKind, Memory, Model, Quantization, Resources, Workload,
};
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::agent::Assignment;
use motley_scheduler_core::wire::agent::Progress;

use super::WorkloadError;
use super::identity::AdapterFiles;
use super::model::{OpenModel, adapter_folder, open_model, places};
use super::plan::{EmbeddingShape, Planned, plan_embedding, planned_on};
use crate::agent::facts::available_memory;
use crate::devices::choose::{DeviceAt, Opened, open_device};
use crate::models::Fetched;
use crate::runner::Context;

/// A job with its device open.
pub(crate) struct Job<'a> {
    context: &'a Context,
    /// Device memory that the job may use; absent: what the system gives.
    allowed: Option<Bytes>,
    pub(crate) backend: Arc<dyn Backend>,
}

impl<'a> Job<'a> {
    /// # Errors
    /// The device cannot be opened.
    pub(crate) fn new(context: &'a Context) -> Result<Job<'a>, WorkloadError> {
        let assignment = &context.spec.assignment;
        let asked = context.document.resources.iter().find(|each| each.backend.contains(&assignment.backend));
        let threads = asked.and_then(|resources| resources.threads).unwrap_or(context.spec.threads);
        let threads = threads.min(context.spec.threads);
        let allowed = allowed_memory(asked, assignment);
        let Opened { backend, note } = open_device(&DeviceAt {
            backend: assignment.backend,
            index: context.spec.device_index,
            precision: context.document.model().precision,
            threads: Some(threads),
            memory: allowed.unwrap_or(Bytes(0)),
        })?;
        let info = backend.info();
        let precision = info.precision.name();
        tracing::info!(device = info.name, threads = info.threads, precision, "device open");
        context.reporter.log(&format!("computing on {} in {precision}", info.name));
        if let Some(note) = note {
            context.reporter.log(&note);
        }
        Ok(Job::on(context, backend, allowed))
    }

    /// On a device that is open: it may use what was leased, or else what the device says that it has.
    pub(crate) fn on(context: &'a Context, backend: Arc<dyn Backend>, allowed: Option<Bytes>) -> Job<'a> {
        let allowed = allowed.or(backend.info().memory.map(Bytes));
        Job { context, allowed, backend }
    }

    pub(crate) fn context(&self) -> &'a Context {
        self.context
    }

    /// What memory is planned for.
    pub(crate) fn planned_on(&self) -> PlannedDevice {
        planned_on(&*self.backend)
    }

    /// Refuses a job that needs more than there is, before anything is loaded.
    ///
    /// # Errors
    /// With both figures, and what `remedy` says for what is allowed.
    pub(crate) fn check_memory(
        &self,
        needed: Bytes,
        remedy: impl FnOnce(Bytes) -> String,
    ) -> Result<(), WorkloadError> {
        match self.allowed {
            Some(allowed) if needed > allowed => {
                let (device, remedy) = (self.backend.info().name.clone(), remedy(allowed));
                Err(WorkloadError::Memory { device, needed, allowed, remedy })
            }
            _ => {
                tracing::info!(%needed, allowed = ?self.allowed, "device memory planned");
                Ok(())
            }
        }
    }

    /// As [`Job::check_memory`], for passes of this size through a model by itself.
    ///
    /// # Errors
    /// It does not fit, or the adapter does not fit the model.
    pub(crate) fn check_embedding(
        &self,
        open: &OpenModel,
        adapter: Option<&AdapterFiles>,
        quantization: Option<Quantization>,
        pass: PassShape,
    ) -> Result<Planned, WorkloadError> {
        let adapter = adapter.map(|files| LoraConfig::from_peft(&files.config)).transpose()?;
        let model = open.planned()?;
        let recorded = matches!(self.context.document.workload, Workload::Serve(_));
        let (on, own) = (self.planned_on(), EmbeddingShape { quantization, adapter, pass, recorded });
        let needed = plan_embedding(&model, on, &own)?;
        self.check_memory(needed, |allowed| {
            let quantized = Some(Quantization::Nf4 { double_quantization: true });
            let smaller = EmbeddingShape { quantization: quantized, ..own.clone() };
            let can_change = own.quantization.is_none() && own.adapter.is_none();
            match plan_embedding(&model, on, &smaller).ok().filter(|_| can_change) {
                Some(enough) if enough <= allowed => {
                    format!("set [model] quantization = \"nf4\", which needs {enough}")
                }
                Some(enough) => {
                    format!("lower [model] max_length, or take a smaller model: even nf4 needs {enough}")
                }
                None => "lower [model] max_length, or take a smaller model".to_owned(),
            }
        })?;
        Ok(Planned::embedding(needed))
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
            match self.context.stop.is_set() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
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

/// What was leased. Behind `memory = "auto"` stands an estimate made without the model's tokenizer, perhaps without its
/// config.json: where the exact plan is above it, the job may have what the device has free.
fn allowed_memory(asked: Option<&Resources>, assignment: &Assignment) -> Option<Bytes> {
    let leased = Some(assignment.memory).filter(|memory| memory.0 > 0)?;
    let is_auto = asked.is_some_and(|resources| resources.memory == Memory::Auto);
    let free = || available_memory().unwrap_or(leased).max(leased);
    match (is_auto, assignment.backend) {
        (false, _) => Some(leased),
        (true, BackendKind::Cpu) => Some(free()),
        // The driver knows what others have left, and refuses what is not there.
        (true, BackendKind::Cuda | BackendKind::Wgpu) => None,
    }
}
