// What stands before every WGSL source of Motley. One of workgroup_plain.wgsl and workgroup_subgroups.wgsl follows.
//
//   block_of              number of this workgroup: grids are folded over x and y, so there may be a few too many
//   is_nan                by the bits, for compilers that take numbers to be finite
//   at_least              as `max`, which of a number and NaN may be the number
//   exact_exp, exact_log, exact_erf     to a few units of the last place, where the builtins promise far less
//   activation            forward of `gelu`, which products apply too
//   philox                Philox4x32-10 (Salmon et al. 2011), products of 64 bits from halves

fn block_of(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.x + id.y * groups.x;
}

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn at_least(x: f32, least: f32) -> f32 {
    return select(select(x, least, x < least), x, is_nan(x));
}

// 0 below −87.3; the polynomial and the reduction of kernels/src/simd.rs.
fn exact_exp(x: f32) -> f32 {
    let clamped = clamp(x, -87.3, 88.0);
    let n = round(clamped * 1.44269504);
    let r = (clamped - n * 0.69314575) - n * 1.4286068e-6;
    var p = 0.0013941108;
    p = p * r + 0.008375126;
    p = p * r + 0.04166635;
    p = p * r + 0.16666415;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let value = p * bitcast<f32>(u32(i32(n) + 127) << 23u);
    return select(select(value, 0.0, x < -87.3), x, is_nan(x));
}

// Of a normal number: log(m·2ⁿ), m in [√½, √2), by the polynomial of Cephes' logf. The rest is left to the builtin.
fn exact_log(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    if bits < 0x00800000u || bits >= 0x7f800000u {
        return log(x);
    }
    let shifted = bits - 0x3f3504f3u;
    let n = f32(bitcast<i32>(shifted) >> 23u);
    let r = bitcast<f32>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0;
    var p = 7.0376836292e-2;
    p = p * r - 1.1514610310e-1;
    p = p * r + 1.1676998740e-1;
    p = p * r - 1.2420140846e-1;
    p = p * r + 1.4249322787e-1;
    p = p * r - 1.6668057665e-1;
    p = p * r + 2.0000714765e-1;
    p = p * r - 2.4999993993e-1;
    p = p * r + 3.3333331174e-1;
    let square = r * r;
    let rest = (p * r * square - 2.12194440e-4 * n) - 0.5 * square;
    return (r + rest) + 0.693359375 * n;
}

// The quotient of kernels/src/simd.rs.
fn exact_erf(x: f32) -> f32 {
    let bounded = clamp(x, -4.0, 4.0);
    let s = bounded * bounded;
    var p = 3.082555e-8;
    p = p * s - 3.1326945e-6;
    p = p * s + 0.00023752624;
    p = p * s + 0.006435038;
    p = p * s + 0.08310429;
    p = p * s + 0.33405328;
    p = p * s + 1.8200755;
    var q = 0.0016466124;
    q = q * s + 0.024123896;
    q = q * s + 0.19027029;
    q = q * s + 0.8337103;
    q = q * s + 1.613;
    return select(clamp(bounded * p / q, -1.0, 1.0), x, is_nan(x));
}

fn exact_tanh(x: f32) -> f32 {
    return 1.0 - 2.0 / (exact_exp(2.0 * x) + 1.0);
}

// Kinds of `gelu`.
const EXACT: u32 = 0u;
const TANH: u32 = 1u;
const RELU: u32 = 2u;
const ROOT_HALF: f32 = 0.70710678;
const ROOT_TWO_OVER_PI: f32 = 0.79788456;

fn tanh_argument(x: f32) -> f32 {
    return ROOT_TWO_OVER_PI * (x + 0.044715 * x * x * x);
}

fn activation(kind: u32, x: f32) -> f32 {
    if kind == EXACT {
        return 0.5 * x * (1.0 + exact_erf(x * ROOT_HALF));
    } else if kind == TANH {
        return 0.5 * x * (1.0 + exact_tanh(tanh_argument(x)));
    }
    return select(select(x, 0.0, x < 0.0), x, is_nan(x));
}

// The least finite f32.
const LOWEST: f32 = -3.4028234e38;

// High and low word of a·b.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a1 * b1 + (middle >> 16u) + (other >> 16u), a * b);
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round += 1u) {
        let first = wide_product(0xd2511f53u, c.x);
        let second = wide_product(0xcd9e8d57u, c.z);
        c = vec4<u32>(second.x ^ c.y ^ k.x, second.y, first.x ^ c.w ^ k.y, first.y);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

fn dropout_key(seed_low: u32, seed_high: u32, step: u32) -> vec2<u32> {
    return vec2<u32>(seed_low, seed_high ^ (step * 0x9e3779b9u));
}

// Words below this are dropped. The product is exact.
fn dropout_threshold(probability: f32) -> u32 {
    return u32(probability * 4294967296.0);
}
