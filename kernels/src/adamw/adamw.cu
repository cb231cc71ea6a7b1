// A thread an element. The formulas stand in mod.rs.

struct Args {
    u32 count;
    float decay;
    float beta1;
    float beta2;
    float step_size;
    float correction2_root;
    float epsilon;
    float gradient_scale;
};

extern "C" __global__ void adamw_step(const float* gradient, float* parameter, float* first_moment,
                                      float* second_moment, Args args) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= args.count) {
        return;
    }
    float g = gradient[i] * args.gradient_scale;
    float m = args.beta1 * first_moment[i] + (1.0f - args.beta1) * g;
    float v = args.beta2 * second_moment[i] + (1.0f - args.beta2) * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    float denominator = sqrtf(v) / args.correction2_root + args.epsilon;
    parameter[i] = parameter[i] * args.decay - args.step_size * m / denominator;
}
