//! Cases of recordings: what was recorded computes the bits that the same calls compute one by one, again and again,
//! with memory of its own and with what its buffers hold by then.

use motley_backends::{
    Buffer, Category, Direction, Epilogue, Linear, Recording, SourceDtype, Weight, WeightFormat, WeightPart,
    WeightSource,
};
use motley_backends::{Error, Launch};
use motley_kernels::{Dtype, elementwise, gelu};

use super::device::{Data, Device};
use super::random::Random;

const ROWS: usize = 24;
const WIDTH: usize = 64;

/// x + GELU of W·GELU(W·x + b) + 1, in memory that comes and goes.
struct Work {
    weight: Weight,
    x: Buffer,
    out: Buffer,
}

impl Work {
    fn new(device: &Device<'_>, format: WeightFormat) -> Self {
        let (values, bias) = (Random::new(5).numbers(WIDTH * WIDTH), Random::new(6).numbers(WIDTH));
        let shape = [WIDTH, WIDTH];
        let parts = [WeightPart { bytes: bytemuck::cast_slice(&values), shape, dtype: SourceDtype::F32 }];
        let source = WeightSource { parts: &parts, bias: Some(&bias), format };
        let weight = device.backend.prepare_weight(&source).expect("a sound weight");
        let (x, out) = (activation(device), activation(device));
        Work { weight, x, out }
    }

    fn ask(&self, device: &Device<'_>) -> Result<(), Error> {
        let args = elementwise::Args { count: (ROWS * WIDTH) as u32, alpha: 1.0 };
        let add = |x: &Buffer, y: &Buffer| {
            device.backend.launch(&Launch::new(&elementwise::ADD, &args, &[x.all(), y.all()]))
        };
        // It must be zeroed at every replay, whatever the one before left there.
        let sum = device.backend.allocate(self.x.bytes(), Category::Activations)?;
        add(&self.x, &sum)?;
        for _ in 0..2 {
            let y = device.backend.allocate_unfilled(self.x.bytes(), Category::Activations)?;
            device.backend.linear(&Linear {
                input: sum.all(),
                weight: &self.weight,
                output: y.all(),
                rows: ROWS,
                epilogue: Epilogue::BiasActivation(gelu::Kind::Exact),
                direction: Direction::Forward,
                accumulate: false,
            })?;
            add(&y, &sum)?;
        }
        let args = gelu::Args { count: (ROWS * WIDTH) as u32, kind: gelu::Kind::Exact as u32 };
        device.backend.launch(&Launch::new(&gelu::FORWARD, &args, &[sum.all(), self.out.all()]))
    }

    /// What it computes of `x`, asked by `ask`.
    fn of(&self, device: &Device<'_>, x: &[f32], ask: impl FnOnce() -> Result<(), Error>) -> Vec<u8> {
        let x = device.encode(&Data::of(x), Dtype::Activation);
        device.backend.upload(&x, self.x.all()).expect("upload of a case");
        device.backend.upload(&vec![0xff; self.out.bytes()], self.out.all()).expect("upload of a case");
        ask().expect("calls that were sound before");
        device.read(&self.out)
    }
}

fn activation(device: &Device<'_>) -> Buffer {
    let bytes = ROWS * WIDTH * if device.is_bf16() { 2 } else { 4 };
    device.backend.allocate(bytes, Category::Activations).expect("memory of a case")
}

fn record(device: &Device<'_>, work: &Work, shared: Option<&Recording>) -> Option<Recording> {
    let mut asked = Ok(());
    let recording =
        device.backend.record(shared, &mut || asked = work.ask(device)).expect("work that can be noted");
    asked.expect("calls that were sound before");
    recording
}

pub fn cases(device: &mut Device<'_>) {
    let live = device.backend.memory().live;
    let double = WeightFormat::Nf4 { double_quantization: true };
    let works = [WeightFormat::F32, double].map(|format| Work::new(device, format));
    let xs = [7, 8].map(|seed| Random::new(seed).numbers(ROWS * WIDTH));
    // Done before it is recorded, as is asked of callers.
    let wanted: Vec<[Vec<u8>; 2]> =
        works.iter().map(|work| xs.each_ref().map(|x| work.of(device, x, || work.ask(device)))).collect();
    let before = device.backend.memory().live;
    let Some(first) = record(device, &works[0], None) else { return };
    let one = device.backend.memory().live - before;
    let Some(second) = record(device, &works[1], Some(&first)) else { return };
    let two = device.backend.memory().live - before;
    if !(one > 0 && two < 2 * one + WIDTH as u64 * WIDTH as u64 * 4) {
        device.complain("recording", &format!("two recordings hold {two} bytes, one of them {one}"));
    }
    for round in 0..2 {
        for (work, recording, wanted) in [(&works[0], &first, &wanted[0]), (&works[1], &second, &wanted[1])] {
            device.case = format!("round {round}");
            for (x, wanted) in xs.iter().zip(wanted) {
                device.seen.entry("recording").or_default().cases += 1;
                if work.of(device, x, || device.backend.replay(recording)) != *wanted {
                    device.complain("recording", "other bits than by single calls");
                }
                // Work of others between replays, in other memory.
                if work.of(device, x, || work.ask(device)) != *wanted {
                    device.complain("recording", "single calls are disturbed");
                }
            }
        }
    }
    refuses_what_happens_once(device);
    drop((first, second));
    device.backend.synchronize().expect("a device that is well");
    if device.backend.memory().live != before {
        device.complain("recording", "memory is left behind");
    }
    drop(works);
    if device.backend.memory().live != live {
        device.complain("recording", "memory of weights is left behind");
    }
}

fn refuses_what_happens_once(device: &mut Device<'_>) {
    let buffer = activation(device);
    let mut told = Vec::new();
    let recording = device.backend.record(None, &mut || {
        let mut bytes = [0; 4];
        told.push(device.backend.upload(&bytes, buffer.all()));
        told.push(device.backend.download(buffer.all(), &mut bytes));
        told.push(device.backend.synchronize());
    });
    let refused = told.iter().all(|told| matches!(told, Err(Error::Recorded { .. })));
    if !refused || recording.is_err() {
        device.complain("recording", "took a copy or a wait for work");
    }
}
