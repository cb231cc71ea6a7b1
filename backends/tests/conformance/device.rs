//! One call on a device: buffers between guards, outputs full of NaN, results compared with bounds and recorded.

use std::collections::BTreeMap;

use motley_backends::{Backend, Buffer, Category, Launch, Precision};
use motley_kernels::{Access, Arguments, Dtype, Entry};

use super::bounded::{BF16, Bounded, FLUSHED};

/// Bytes before and behind each buffer, which a call must leave as they are. They are NaN, so that reading them shows.
pub const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xff;
/// Complaints that are printed of one device; the rest are counted.
const COMPLAINTS_MAX: usize = 20;

/// What was seen of one entry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub cases: usize,
    /// Largest error; where a case has values above 1, as a share of its largest.
    pub error: f64,
    /// Largest error as a share of its bound.
    pub share: f64,
}

pub struct Device<'a> {
    pub backend: &'a dyn Backend,
    pub seen: BTreeMap<&'static str, Seen>,
    pub complaints: Vec<String>,
    /// What is compared, for complaints.
    pub case: String,
}

/// Contents of one binding.
#[derive(Clone)]
pub enum Data {
    /// Numbers: rounded on upload where the binding is an activation.
    Numbers(Vec<f32>),
    Words(Vec<u32>),
    Bytes(Vec<u8>),
    /// Numbers to be written, NaN until then.
    Output(usize),
}

impl Data {
    pub fn of(values: &[f32]) -> Self {
        Data::Numbers(values.to_vec())
    }

    pub fn words(values: &[u32]) -> Self {
        Data::Words(values.to_vec())
    }
}

impl<'a> Device<'a> {
    pub fn new(backend: &'a dyn Backend) -> Self {
        Device { backend, seen: BTreeMap::new(), complaints: vec![], case: String::new() }
    }

    pub fn is_bf16(&self) -> bool {
        self.backend.info().precision == Precision::Bf16
    }

    /// As the device's activations hold them.
    pub fn rounded(&self, mut values: Vec<f32>) -> Vec<f32> {
        if self.is_bf16() {
            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
        }
        values
    }

    /// Runs an entry; numbers of each binding that it writes.
    pub fn run<A: Arguments>(&mut self, entry: &'static Entry, args: &A, data: Vec<Data>) -> Vec<Vec<f32>> {
        self.run_from(entry, args, data, GUARD)
    }

    /// As [`Device::run`], with the f32 views `lead` bytes into their buffers: parameters lie behind one another.
    pub fn run_from<A: Arguments>(
        &mut self,
        entry: &'static Entry,
        args: &A,
        data: Vec<Data>,
        lead: usize,
    ) -> Vec<Vec<f32>> {
        assert_eq!(entry.bindings.len(), data.len(), "{}", entry.name);
        let bytes: Vec<Vec<u8>> =
            data.iter().zip(entry.bindings).map(|(data, binding)| self.encode(data, binding.dtype)).collect();
        let leads = entry.bindings.iter().map(|b| if b.dtype == Dtype::F32 { lead } else { GUARD });
        let leads: Vec<usize> = leads.collect();
        let buffers: Vec<Buffer> =
            bytes.iter().zip(&leads).map(|(bytes, lead)| self.guarded(bytes, *lead)).collect();
        let views = buffers.iter().zip(&bytes).zip(&leads);
        let views: Vec<_> = views.map(|((buffer, bytes), lead)| buffer.part(*lead, bytes.len())).collect();
        if let Err(error) = self.backend.launch(&Launch::new(entry, args, &views)) {
            self.complain(entry.name, &error.to_string());
        }
        self.seen.entry(entry.name).or_default().cases += 1;
        let mut results = vec![];
        for (index, binding) in entry.bindings.iter().enumerate() {
            let (whole, lead) = (self.read(&buffers[index]), leads[index]);
            let (inside, before) = (&whole[lead..lead + bytes[index].len()], &bytes[index]);
            let mut guards = whole[..lead].iter().chain(&whole[lead + before.len()..]);
            if guards.any(|byte| *byte != GUARD_BYTE) {
                self.complain(entry.name, &format!("wrote outside of {}", binding.name));
            }
            if binding.access != Access::Read {
                results.push(self.decode(inside, binding.dtype));
            } else if inside != before {
                self.complain(entry.name, &format!("changed {}, which it may only read", binding.name));
            }
        }
        results
    }

    /// Memory of `bytes` between guards.
    pub fn guarded(&self, bytes: &[u8], lead: usize) -> Buffer {
        // Sizes stay multiples of 4, which some devices copy in.
        let behind = GUARD + bytes.len().next_multiple_of(4) - bytes.len();
        let whole = [&vec![GUARD_BYTE; lead][..], bytes, &vec![GUARD_BYTE; behind][..]].concat();
        let buffer =
            self.backend.allocate_unfilled(whole.len(), Category::Activations).expect("memory of a case");
        self.backend.upload(&whole, buffer.all()).expect("upload of a case");
        buffer
    }

    pub fn read(&self, buffer: &Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.bytes()];
        self.backend.download(buffer.all(), &mut bytes).expect("download of a case");
        bytes
    }

    pub fn encode(&self, data: &Data, dtype: Dtype) -> Vec<u8> {
        let narrow = dtype == Dtype::Activation && self.is_bf16();
        let number = |values: &[f32]| -> Vec<u8> {
            if narrow {
                values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
            } else {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
        };
        match data {
            Data::Numbers(values) => number(values),
            Data::Output(count) => number(&vec![f32::NAN; *count]),
            Data::Words(words) => words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Data::Bytes(bytes) => bytes.clone(),
        }
    }

    pub fn decode(&self, bytes: &[u8], dtype: Dtype) -> Vec<f32> {
        if dtype == Dtype::Activation && self.is_bf16() {
            bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        } else {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    }

    /// Compares f32 results of an entry with what its specification bounds.
    pub fn compare(&mut self, entry: &'static str, got: &[f32], wanted: &[Bounded]) {
        self.compare_as(entry, got, wanted, false);
    }

    /// Compares activations that an entry wrote: rounding them to 16 bits comes on top of the bound.
    pub fn compare_activations(&mut self, entry: &'static str, got: &[f32], wanted: &[Bounded]) {
        self.compare_as(entry, got, wanted, self.is_bf16());
    }

    pub fn compare_as(&mut self, entry: &'static str, got: &[f32], wanted: &[Bounded], is_bf16: bool) {
        let rounding = if is_bf16 { BF16 } else { 0.0 };
        if got.len() != wanted.len() {
            self.complain(entry, &format!("{} elements, {} are wanted", got.len(), wanted.len()));
            return;
        }
        let (mut worst, mut complaint) = (Seen::default(), None);
        for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            match distance(*got, wanted, rounding) {
                Ok((error, share)) => {
                    worst.error = worst.error.max(error);
                    if share > worst.share.max(1.0) {
                        let (wanted, bound) = (wanted.value, error / share);
                        complaint = Some(format!("element {i}: {got}, wanted {wanted} to {bound:.1e}"));
                    }
                    worst.share = worst.share.max(share);
                }
                Err(problem) => complaint = Some(format!("element {i}: {got}, {problem}")),
            }
        }
        let finite = wanted.iter().map(|wanted| wanted.value.abs()).filter(|value| value.is_finite());
        worst.error /= finite.fold(1.0, f64::max);
        let seen = self.seen.entry(entry).or_default();
        (seen.error, seen.share) = (seen.error.max(worst.error), seen.share.max(worst.share));
        if let Some(complaint) = complaint {
            self.complain(entry, &complaint);
        }
    }

    /// Compares results that have no rounding at all.
    pub fn compare_bits(&mut self, entry: &'static str, got: &[f32], wanted: &[f32]) {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        if got.len() != wanted.len() {
            self.complain(entry, &format!("{} elements, {} are wanted", got.len(), wanted.len()));
        } else if let Some(i) = (0..got.len()).find(|i| !same((&got[*i], &wanted[*i]))) {
            self.complain(entry, &format!("element {i}: {}, {} are the wanted bits", got[i], wanted[i]));
        }
        self.seen.entry(entry).or_default();
    }

    pub fn complain(&mut self, entry: &str, problem: &str) {
        self.complaints.push(format!("{entry} ({}): {problem}", self.case));
    }

    /// # Panics
    /// If anything was wrong on this device.
    pub fn finish(&self) {
        let name = &self.backend.info().name;
        let told =
            self.complaints.iter().take(COMPLAINTS_MAX).map(|c| format!("  {c}\n")).collect::<String>();
        let count = self.complaints.len();
        assert!(count == 0, "{name}: {count} complaints, the first of them\n{told}");
    }
}

/// How far a result is from what is wanted, and as a share of the bound.
///
/// # Errors
/// NaN or infinity on one side alone, or a bound that says nothing.
fn distance(got: f32, wanted: &Bounded, rounding: f64) -> Result<(f64, f64), String> {
    let (value, got) = (wanted.value, f64::from(got));
    // Beyond the largest f32 there is infinity.
    let value = if value.abs() > f64::from(f32::MAX) * (1.0 + wanted.error / value.abs()) {
        value.signum() * f64::INFINITY
    } else {
        value
    };
    if value.is_nan() || value.is_infinite() {
        let same = got == value || got.is_nan() && value.is_nan();
        return if same { Ok((0.0, 0.0)) } else { Err(format!("wanted {value}")) };
    }
    if !wanted.error.is_finite() {
        return Err(format!("wanted {value}, but the case bounds nothing"));
    }
    if !got.is_finite() {
        return Err(format!("wanted {value}"));
    }
    let bound = wanted.error + rounding * (value.abs() + wanted.error) + FLUSHED;
    let error = (got - value).abs();
    Ok((error, error / bound))
}
