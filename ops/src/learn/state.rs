//! A trainer's state between two steps, and its file: safetensors with the step among the metadata.

use std::collections::{BTreeMap, HashMap};

use motley_backends::SourceDtype;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::Trainer;
use crate::model::weights::to_f32;
use crate::{Error, Result};

/// Everything that changes from step to step. Random draws need nothing: they are functions of seed and step.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// `<kind>.<module path>.lora_A` [rank, in] and `.lora_B_transposed` [rank, out]; kind is `parameter`,
    /// `first_moment` or `second_moment`.
    pub tensors: BTreeMap<String, NamedTensor>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

const KINDS: [&str; 3] = ["parameter", "first_moment", "second_moment"];

/// Key of the step in the file's metadata.
const STEP: &str = "motley.trainer.step";

impl TrainerState {
    pub(super) fn of(trainer: &Trainer) -> Result<Self> {
        let (device, count) = (trainer.encoder().device(), trainer.adapter().count);
        let [first, second] = &trainer.moments;
        let flats = [
            trainer.adapter().parameters()?,
            device.download(first.all(), count)?,
            device.download(second.all(), count)?,
        ];
        let mut tensors = BTreeMap::new();
        for (kind, flat) in KINDS.iter().zip(&flats) {
            for (name, start, shape) in places(trainer) {
                let values = flat[start..][..shape[0] * shape[1]].to_vec();
                tensors.insert(format!("{kind}.{name}"), NamedTensor { shape, values });
            }
        }
        Ok(TrainerState { step: trainer.step, tensors })
    }

    pub(super) fn put_into(&self, trainer: &mut Trainer) -> Result<()> {
        let count = trainer.adapter().count;
        let mut flats = vec![vec![0.0f32; count]; KINDS.len()];
        let mut used = 0;
        for (kind, flat) in KINDS.iter().zip(&mut flats) {
            for (name, start, shape) in places(trainer) {
                let name = format!("{kind}.{name}");
                let tensor = self.tensors.get(&name).filter(|tensor| tensor.shape == shape);
                let tensor = tensor.ok_or_else(|| state(format!("no tensor {name} of shape {shape:?}")))?;
                flat[start..][..tensor.values.len()].copy_from_slice(&tensor.values);
                used += 1;
            }
        }
        if used != self.tensors.len() {
            return Err(state(format!("{} tensors, the adapter has {used}", self.tensors.len())));
        }
        trainer.adapter().set_parameters(&flats[0])?;
        let backend = trainer.encoder().backend();
        for (moment, flat) in trainer.moments.iter().zip(&flats[1..]) {
            backend.upload(bytemuck::cast_slice(flat), moment.all())?;
        }
        trainer.step = self.step;
        Ok(())
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = |tensor: &NamedTensor| -> Vec<u8> {
            tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let all: Vec<(&String, [usize; 2], Vec<u8>)> =
            self.tensors.iter().map(|(name, tensor)| (name, tensor.shape, bytes(tensor))).collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("shape and bytes agree"))
        });
        let metadata = HashMap::from([(STEP.to_owned(), self.step.to_string())]);
        safetensors::serialize(views, Some(metadata))
            .expect("names are plain and sizes are those of the tensors")
    }

    /// Reads [`TrainerState::to_bytes`].
    ///
    /// # Errors
    /// Bytes that are no such file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(Error::WeightFile)?;
        let step = metadata.metadata().as_ref().and_then(|entries| entries.get(STEP)?.parse().ok());
        let step = step.ok_or_else(|| state(format!("{STEP} is missing")))?;
        let file = SafeTensors::deserialize(bytes).map_err(Error::WeightFile)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let [rows, columns] = *view.shape() else { return Err(state(format!("{name} is no matrix"))) };
            if view.dtype() != Dtype::F32 {
                return Err(Error::TensorDtype {
                    name: name.to_owned(),
                    found: format!("{:?}", view.dtype()),
                });
            }
            let values = to_f32(view.data(), SourceDtype::F32);
            tensors.insert(name.to_owned(), NamedTensor { shape: [rows, columns], values });
        }
        Ok(TrainerState { step, tensors })
    }
}

/// Name, first element and shape of every factor.
fn places(trainer: &Trainer) -> Vec<(String, usize, [usize; 2])> {
    let adapter = trainer.adapter();
    let (rank, model) = (adapter.config.rank, trainer.encoder().config());
    let of = |module: &crate::adapter::Module| {
        let path = model.module_path(module.layer, module.role);
        [
            (format!("{path}.lora_A"), module.a, [rank, module.inputs]),
            (format!("{path}.lora_B_transposed"), module.b, [rank, module.outputs]),
        ]
    };
    adapter.modules.iter().flat_map(of).collect()
}

fn state(problem: String) -> Error {
    Error::State { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_back_as_written() {
        let tensor = NamedTensor { shape: [2, 1], values: vec![1.5, -0.0] };
        let state = TrainerState { step: 7, tensors: [("parameter.x".to_owned(), tensor)].into() };
        let read = TrainerState::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(read, state);
        assert_eq!(read.tensors["parameter.x"].values[1].to_bits(), (-0.0f32).to_bits());
        assert!(TrainerState::from_bytes(b"12345678").is_err());
    }
}
