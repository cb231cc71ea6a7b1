//! Products: with weights, piece by piece, and of two buffers. One source, two ways to run it.

use motley_kernels::{Access, arguments, gelu};

use super::Wgpu;
use super::operand::Operand;
use super::pipeline::Function;
use super::right::{Format, Right};
use super::weight::DeviceWeight;
use crate::Result;
use crate::buffer::View;
use crate::open::Precision;
use crate::product::{self, Direction, Epilogue, Linear, Matmul};

const SHARED: &str = include_str!("product.wgsl");
const PLAIN: &str = include_str!("product_plain.wgsl");
const TILED: &str = include_str!("product_tiled.wgsl");

/// left, right, bias, output; behind them what scales of NF4 are made of.
const ACCESSES: [Access; 7] = {
    use Access::{Read, ReadWrite};
    [Read, Read, Read, ReadWrite, Read, Read, Read]
};

arguments! {
    /// Scalars of a product; product.wgsl says what they are.
    pub struct Args {
        pub rows: u32,
        pub columns: u32,
        pub depth: u32,
        pub batch: u32,
        pub left_offset: u32,
        pub left_row: u32,
        pub left_column: u32,
        pub left_batch: u32,
        pub right_offset: u32,
        pub right_row: u32,
        pub right_column: u32,
        pub right_batch: u32,
        pub output_offset: u32,
        pub output_row: u32,
        pub output_batch: u32,
        pub bias_offset: u32,
        pub alpha: f32,
        pub beta: f32,
        pub epilogue: u32,
        pub scale_offset: f32,
    }
}

/// The two ways: without and with memory of the workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Plain,
    Tiled,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Plain => "product_plain",
            Way::Tiled => "product_tiled",
        }
    }

    /// Behind the prelude.
    pub fn source(self, right: Format) -> String {
        let source = if self == Way::Plain { PLAIN } else { TILED };
        format!("{SHARED}{}{source}", right.source())
    }

    /// Rows up to which a product decodes NF4 itself. For more, it is cheaper to decode once, into workspace, than again
    /// for each tile. The bits are the same.
    ///
    /// Plain: the rows of one thread, because each decodes for itself. On Mesa's software device, 384 × 1536 and
    /// 768 × 3072, up to 4 rows take 0.3 to 0.85 of the time, 8 rows 0.5 to 2.3, 32 rows 1.1 to 2.3.
    ///
    /// Tiled: two tiles, by reasoning, not measured on a card. A value through workspace moves 4.6 bytes once and 4 bytes
    /// a tile; a decoded one moves 0.6 bytes a tile, but takes about 15 instructions there beside 64 multiplications.
    pub fn decoded_rows_max(self) -> u32 {
        match self {
            Way::Plain => 4,
            Way::Tiled => 128,
        }
    }

    /// Rows and columns of a workgroup: many where there are enough of them for every part of a large card.
    fn tile(self, rows: u32, columns: u32) -> u32 {
        const ENOUGH: u32 = 64;
        match self {
            Way::Plain => 32,
            Way::Tiled if rows.div_ceil(128) * columns.div_ceil(128) >= ENOUGH => 128,
            Way::Tiled => 64,
        }
    }
}

/// What a product works on. Absent: none of it is looked at.
struct Factors<'a> {
    left: View<'a>,
    right: Right<'a>,
    bias: Option<View<'a>>,
    output: View<'a>,
}

pub(super) fn linear(wgpu: &Wgpu, call: &Linear<'_>, weight: &DeviceWeight) -> Result<()> {
    let (input, output) = call.check(Precision::F32)?;
    let [out, width] = call.weight.shape();
    let (from, to) = match call.direction {
        Direction::Forward => (width, out),
        Direction::Backward => (out, width),
    };
    // Rows are independent: so many that input and output can be bound.
    let bytes = from.max(to).max(1) * 4;
    let most = (wgpu.binding_bytes() as usize / bytes).max(1);
    for first in (0..call.rows).step_by(most) {
        let rows = most.min(call.rows - first);
        let cut = |view: View<'_>, width: usize| (view.offset + first * width * 4, rows * width * 4);
        let ((input_offset, input_bytes), (output_offset, output_bytes)) =
            (cut(input, from), cut(output, to));
        let input = input.buffer.part(input_offset, input_bytes);
        let output = output.buffer.part(output_offset, output_bytes);
        linear_rows(wgpu, &Linear { input, output, rows, ..*call }, weight)?;
    }
    Ok(())
}

fn linear_rows(wgpu: &Wgpu, call: &Linear<'_>, weight: &DeviceWeight) -> Result<()> {
    let [out, width] = call.weight.shape();
    let rows = call.rows as u32;
    let forward = call.direction == Direction::Forward;
    let bias = weight.bias.as_ref().filter(|_| forward && call.epilogue != Epilogue::None);
    let plain = Args { rows, batch: 1, left_column: 1, alpha: 1.0, ..bytemuck::Zeroable::zeroed() };
    let mut beta = if call.accumulate { 1.0 } else { 0.0 };
    let (tables, mut first) = (wgpu.nf4_tables()?, 0);
    for piece in &weight.pieces {
        let values = piece.values(wgpu, tables, rows <= wgpu.way.decoded_rows_max())?;
        let args = match call.direction {
            Direction::Forward => Args {
                columns: piece.rows as u32,
                depth: width as u32,
                left_row: width as u32,
                right_row: 1,
                right_column: width as u32,
                output_offset: first as u32,
                output_row: out as u32,
                bias_offset: first as u32,
                beta,
                epilogue: epilogue(call.epilogue, bias.is_some()),
                ..plain
            },
            Direction::Backward => Args {
                columns: width as u32,
                depth: piece.rows as u32,
                left_offset: first as u32,
                left_row: out as u32,
                right_row: width as u32,
                right_column: 1,
                output_row: width as u32,
                beta,
                ..plain
            },
        };
        let right = Right::of(wgpu, &values, tables)?;
        let bias = bias.map(|bias| bias.all());
        run(wgpu, args, Factors { left: call.input, right, bias, output: call.output })?;
        first += piece.rows;
        // The next piece of a sum over `out` adds to this one.
        beta = if forward { beta } else { 1.0 };
    }
    if first == 0 && !forward {
        // A sum of nothing.
        let args = Args { columns: width as u32, output_row: width as u32, beta, ..plain };
        let (left, output) = (call.input, call.output);
        run(wgpu, args, Factors { left, right: Right::new(Format::F32, None), bias: None, output })?;
    }
    Ok(())
}

/// As the sources number them. An activation follows also where there is no bias.
fn epilogue(epilogue: Epilogue, has_bias: bool) -> u32 {
    match epilogue {
        Epilogue::None => 0,
        Epilogue::Bias => u32::from(has_bias),
        Epilogue::BiasActivation(kind) => {
            let kind = match kind {
                gelu::Kind::Exact => 0,
                gelu::Kind::Tanh => 1,
                gelu::Kind::Relu => 2,
            };
            2 + kind + if has_bias { 0 } else { 3 }
        }
    }
}

pub(super) fn matmul(wgpu: &Wgpu, call: &Matmul<'_>) -> Result<()> {
    call.check()?;
    let [m, n, k] = call.shape.map(|size| size as u32);
    let steps = |operand: &product::Operand<'_>| {
        let stride = operand.stride as u32;
        if operand.transposed { (1, stride) } else { (stride, 1) }
    };
    let ((left_row, left_column), (right_row, right_column)) = (steps(&call.left), steps(&call.right));
    let args = Args {
        rows: m,
        columns: n,
        depth: k,
        batch: call.batch as u32,
        left_row,
        left_column,
        left_batch: call.left.batch_stride as u32,
        right_row,
        right_column,
        right_batch: call.right.batch_stride as u32,
        output_row: call.output.stride as u32,
        output_batch: call.output.batch_stride as u32,
        alpha: call.alpha,
        beta: call.beta,
        ..bytemuck::Zeroable::zeroed()
    };
    let right = Right::new(Format::F32, Some(call.right.view));
    let (left, output) = (call.left.view, call.output.view);
    run(wgpu, args, Factors { left, right, bias: None, output })
}

/// `left`, one value, times each value of `right`.
pub(super) fn scaled(wgpu: &Wgpu, left: View<'_>, right: Right<'_>, output: View<'_>) -> Result<()> {
    let columns = (output.bytes / 4) as u32;
    let zero: Args = bytemuck::Zeroable::zeroed();
    let args = Args { rows: 1, columns, depth: 1, batch: 1, alpha: 1.0, right_column: 1, ..zero };
    run(wgpu, args, Factors { left, right, bias: None, output })
}

fn run<'a>(wgpu: &Wgpu, args: Args, factors: Factors<'a>) -> Result<()> {
    const WHAT: &str = "product";
    if args.rows == 0 || args.columns == 0 {
        return Ok(());
    }
    wgpu.check_rounds(WHAT, u64::from(args.depth))?;
    let nothing = factors.output.buffer.part(0, 0);
    let Right { format, view: right, scales, scale_offset } = factors.right;
    let views = [Some(factors.left), right, factors.bias, Some(factors.output)];
    let views: Vec<_> = views.into_iter().chain(scales).take(format.buffers()).collect();
    let operand = |(view, access): (&Option<View<'a>>, &Access)| Operand {
        view: view.unwrap_or(nothing),
        writes: *access != Access::Read,
        shifts: true,
    };
    let operands: Vec<_> = std::iter::zip(&views, &ACCESSES).map(operand).collect();
    let bindings = wgpu.binder.bind(WHAT, &operands)?;
    let shift = |index: usize| bindings.shifts[index];
    let args = Args {
        left_offset: args.left_offset + shift(0),
        right_offset: args.right_offset + shift(1),
        bias_offset: args.bias_offset + shift(2),
        output_offset: args.output_offset + shift(3),
        scale_offset,
        ..args
    };
    let way = wgpu.way;
    let (enable, source) = (format.enable(), way.source(format));
    let size = way.tile(args.rows, args.columns);
    let constants = [("right_format", format as u32), ("size", size)];
    let accesses = &ACCESSES[..format.buffers()];
    let function = Function { name: way.name(), enable, source: &source, accesses, constants: &constants };
    let pipeline = wgpu.pipelines.of_function(&function)?;
    let tiles = args.rows.div_ceil(size) * args.columns.div_ceil(size) * args.batch;
    wgpu.recorder.dispatch(&pipeline, &bindings.bound, bytemuck::bytes_of(&args), tiles)?;
    wgpu.binder.finish(WHAT, &bindings)
}
