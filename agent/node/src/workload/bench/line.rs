//! What `ctl bench encode|train` prints: one line of JSON.

use std::collections::BTreeMap;

use motley_backends::{Category, DeviceKind};
use motley_ops::Encoder;
use serde::Serialize;

use super::{Bench, BenchOptions};
use crate::workload::WorkloadError;
use crate::workload::program::peak_resident_bytes;

/// One line of `ctl bench`. What does not belong to a measurement is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchLine {
    pub implementation: String,
    /// `cuda:0`
    pub device: String,
    /// What activations were kept in.
    pub precision: String,
    /// What was not as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentences_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs_per_s: Option<f64>,
    /// Real tokens: nothing is padded.
    pub tokens_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms_p99: Option<f64>,
    /// Single texts where servers record their passes: without that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrecorded_latency_ms_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_pass: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms_per_step_p99: Option<f64>,
    /// Operations of products and attention, a second, in 10¹².
    pub tflops: f64,
    /// Of a large square product.
    pub peak_tflops: f64,
    pub share_of_peak: f64,
    /// On the device, by what for, and `total`: the peaks of different purposes need not fall together.
    pub device_peak_mib: BTreeMap<&'static str, f64>,
    pub peak_memory_mib: Option<u64>,
}

impl BenchLine {
    /// A line without figures yet.
    pub(super) fn new(bench: &Bench, options: &BenchOptions, what: &str) -> BenchLine {
        let info = bench.backend.info();
        let backend = match info.kind {
            DeviceKind::Cuda => "cuda",
            DeviceKind::Wgpu => "wgpu",
            DeviceKind::Cpu => "cpu",
            DeviceKind::Null => "null",
        };
        let weights = match (options.quantization, info.precision.name()) {
            (Some(_), "f32") => "nf4".to_owned(),
            (Some(_), precision) => format!("nf4 {precision}"),
            (None, "f32") => "float32".to_owned(),
            (None, precision) => precision.to_owned(),
        };
        BenchLine {
            implementation: format!("Motley {backend}{what} {weights}"),
            device: info.name.clone(),
            precision: info.precision.name().to_owned(),
            note: bench.note.clone(),
            threads: info.threads,
            sentences_per_s: None,
            pairs_per_s: None,
            tokens_per_s: 0.0,
            latency_ms_p50: None,
            latency_ms_p99: None,
            unrecorded_latency_ms_p50: None,
            ms_per_pass: None,
            ms_per_step: None,
            ms_per_step_p50: None,
            ms_per_step_p99: None,
            tflops: 0.0,
            peak_tflops: rounded(bench.peak / 1e12, 4),
            share_of_peak: 0.0,
            device_peak_mib: BTreeMap::new(),
            peak_memory_mib: None,
        }
    }

    /// Fills in what the work comes to, and the memory it took.
    pub(super) fn finish(mut self, bench: &Bench, operations_per_s: f64) -> BenchLine {
        self.tflops = rounded(operations_per_s / 1e12, 4);
        self.share_of_peak = rounded(operations_per_s / bench.peak, 3);
        let report = bench.backend.memory();
        let mib = |bytes: u64| rounded(bytes as f64 / f64::from(1 << 20), 1);
        self.device_peak_mib =
            Category::ALL.map(|category| (category.name(), mib(report.category(category).peak))).into();
        self.device_peak_mib.insert("total", mib(report.peak));
        self.peak_memory_mib = peak_resident_bytes().map(|bytes| bytes >> 20);
        self
    }

    /// Fills in how long single texts take, in milliseconds, as a server embeds them; `single` embeds all of them one by
    /// one and says how long each took.
    ///
    /// # Errors
    /// Those of `single`, and of recording.
    pub(super) fn latencies(
        &mut self,
        encoder: &mut Encoder,
        single: impl Fn(&Encoder) -> Result<Vec<f64>, WorkloadError>,
    ) -> Result<(), WorkloadError> {
        let sorted = |encoder: &Encoder| {
            single(encoder).map(|mut milliseconds| {
                milliseconds.sort_by(f64::total_cmp);
                milliseconds
            })
        };
        let mut milliseconds = sorted(encoder)?;
        if encoder.record_passes()? > 0 {
            self.unrecorded_latency_ms_p50 = Some(rounded(percentile(&milliseconds, 0.5), 3));
            milliseconds = sorted(encoder)?;
        }
        self.latency_ms_p50 = Some(rounded(percentile(&milliseconds, 0.5), 3));
        self.latency_ms_p99 = Some(rounded(percentile(&milliseconds, 0.99), 3));
        Ok(())
    }

    /// Fills in the times of steps, each in milliseconds, of `pairs` pairs and `tokens` tokens in all.
    pub(super) fn steps(&mut self, mut milliseconds: Vec<f64>, pairs: u64, tokens: u64) {
        let (all, steps) = (milliseconds.iter().sum::<f64>(), milliseconds.len() as f64);
        milliseconds.sort_by(f64::total_cmp);
        self.pairs_per_s = Some(rounded(pairs as f64 / all * 1e3, 1));
        self.tokens_per_s = rounded(tokens as f64 / all * 1e3, 0);
        self.ms_per_step = Some(rounded(all / steps, 1));
        self.ms_per_step_p50 = Some(rounded(percentile(&milliseconds, 0.5), 1));
        self.ms_per_step_p99 = Some(rounded(percentile(&milliseconds, 0.99), 1));
    }
}

/// Linear between neighbours, as numpy's default.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = share * last as f64;
    let below = position as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), rounded(percentile(&values, 0.99), 2)), (99.5, 197.01));
        assert!(percentile(&[], 0.5).is_nan());
    }
}
