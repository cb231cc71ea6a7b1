// The threads of CUDA as contexts of one thread of the processor, block after block.
//
// A thread runs until it ends or waits: for its warp (a collective) or for its block (a barrier). Those that never wait
// run one after another on one stack. Which thread runs first changes from pass to pass, and warps run far ahead of one
// another, so that a barrier that is missing shows in the results. Threads that wait for one another for ever are reported.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

struct uint3 {
    unsigned x, y, z;
};

uint3 threadIdx, blockIdx, blockDim, gridDim;

#ifdef __x86_64__
// Saves the registers that a call must keep and the stack pointer at *save, and goes on at `load`.
extern "C" void motley_switch(void** save, void* load);
asm(R"(
.text
.type motley_switch, @function
motley_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
#error the emulation switches contexts of x86-64 alone
#endif

namespace emulated {
unsigned char* dynamic_shared;

namespace {
// A kernel's frames hold a few KiB of fragments; the vector of a whole tile would still fit.
const size_t STACK_BYTES = 128 << 10;
const unsigned THREADS_MAX = 1024;
const size_t DYNAMIC_BYTES_MAX = 228 << 10;

struct Copy {
    void* shared;
    const void* global;
    bool present;
    int group;
};

enum State { Fresh, Ready, AtBarrier, InWarp, Ended };

struct Thread {
    State state;
    void* stack_pointer;
    char* stack;
    const char* operation;
    int line;
    std::vector<Copy> copies;
    int group;
};

struct Warp {
    unsigned arrived;
    void* records[32];
};

Thread threads[THREADS_MAX];
Warp warps[THREADS_MAX / 32];
unsigned current, running;
void* scheduler;
std::vector<char*> free_stacks;
void (*kernel_body)(void*);
void* kernel_context;
char failure[256];

void to_scheduler() {
    motley_switch(&threads[current].stack_pointer, scheduler);
}

void enter() {
    kernel_body(kernel_context);
    threads[current].state = Ended;
    to_scheduler();
}

char* take_stack() {
    if (free_stacks.empty()) {
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            abort();
        }
        return (char*)memory;
    }
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

// Runs a thread until it waits or ends.
void resume(unsigned index) {
    Thread& thread = threads[index];
    if (thread.state == Fresh) {
        thread.stack = take_stack();
        void** top = (void**)(thread.stack + STACK_BYTES);
        // As if `enter` had been called: its return address would lie below a multiple of 16.
        top[-2] = (void*)enter;
        thread.stack_pointer = top - 8;
    }
    thread.state = Ready;
    current = index;
    threadIdx.x = index;
    motley_switch(&scheduler, thread.stack_pointer);
    if (thread.state == Ended) {
        free_stacks.push_back(thread.stack);
        running--;
    }
}

// Runs each warp as far as it gets, so that one that does not wait for the others is far ahead of them; whether any could
// run.
bool pass(unsigned count, bool backwards) {
    bool any = false;
    for (unsigned i = 0; i < count / 32; i++) {
        unsigned first = (backwards ? count / 32 - 1 - i : i) * 32;
        for (bool again = true; again && failure[0] == 0;) {
            again = false;
            for (unsigned lane = 0; lane < 32 && failure[0] == 0; lane++) {
                unsigned index = first + (backwards ? 31 - lane : lane);
                if (threads[index].state == Fresh || threads[index].state == Ready) {
                    resume(index);
                    any = again = true;
                }
            }
        }
    }
    return any;
}

// Nobody can run: opens the barrier if all that have not ended stand there.
void open_barrier(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        const Thread& thread = threads[i];
        if (thread.state == InWarp) {
            snprintf(failure, sizeof failure, "thread %u of block %u waits for its warp in %s of line %d, which other lanes never reach",
                     i, blockIdx.x, thread.operation, thread.line);
            return;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (threads[i].state == AtBarrier) {
            threads[i].state = Ready;
        }
    }
}

void run_block(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        threads[i].state = Fresh;
        threads[i].copies.clear();
        threads[i].group = 0;
    }
    memset(warps, 0, sizeof warps);
    running = count;
    for (unsigned turn = 0; running > 0 && failure[0] == 0; turn++) {
        if (!pass(count, (blockIdx.x + turn) % 2 == 1) && failure[0] == 0) {
            open_barrier(count);
        }
    }
}
}  // namespace

void barrier(int line) {
    Thread& thread = threads[current];
    thread.state = AtBarrier;
    thread.line = line;
    to_scheduler();
}

void fail(const char* problem, int line) {
    snprintf(failure, sizeof failure, "%s: line %d, thread %u of block %u", problem, line, threadIdx.x, blockIdx.x);
    to_scheduler();
    abort();
}

void collective(const char* operation, int line, void* record, void (*complete)(void* const* records)) {
    unsigned first = current / 32 * 32;
    Warp& warp = warps[current / 32];
    Thread& thread = threads[current];
    thread.state = InWarp;
    thread.operation = operation;
    thread.line = line;
    warp.records[current % 32] = record;
    if (++warp.arrived < 32) {
        to_scheduler();
        return;
    }
    for (unsigned i = first; i < first + 32; i++) {
        if (threads[i].line != line || threads[i].operation != operation) {
            snprintf(failure, sizeof failure, "a warp of block %u came apart: thread %u is in %s of line %d, thread %u in %s of line %d",
                     blockIdx.x, current, operation, line, i, threads[i].operation, threads[i].line);
            to_scheduler();
        }
    }
    complete(warp.records);
    warp.arrived = 0;
    for (unsigned i = first; i < first + 32; i++) {
        threads[i].state = Ready;
    }
}

void begin_copy(void* shared, const void* global, bool present) {
    if ((uintptr_t)shared % 16 != 0 || (present && (uintptr_t)global % 16 != 0)) {
        fail("copy_async between addresses that are no multiples of 16", 0);
    }
    memset(shared, 0xff, 16);
    threads[current].copies.push_back({shared, global, present, threads[current].group});
}

void close_group() {
    threads[current].group++;
}

void wait_for_groups(int pending) {
    Thread& thread = threads[current];
    size_t done = 0;
    for (; done < thread.copies.size() && thread.copies[done].group + pending < thread.group; done++) {
        const Copy& copy = thread.copies[done];
        if (copy.present) {
            memcpy(copy.shared, copy.global, 16);
        } else {
            memset(copy.shared, 0, 16);
        }
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + done);
}

const char* run(unsigned blocks, unsigned count, unsigned shared_bytes, unsigned char* shared,
                unsigned char* shared_end, void (*body)(void*), void* context) {
    // One launch at a time, whoever opened this library.
    static std::mutex busy;
    static thread_local char problem[sizeof failure];
    std::lock_guard<std::mutex> alone(busy);
    static unsigned char* const dynamic = (unsigned char*)aligned_alloc(1024, DYNAMIC_BYTES_MAX);
    if (count == 0 || count > THREADS_MAX || count % 32 != 0 || shared_bytes > DYNAMIC_BYTES_MAX) {
        return "a block has 32 to 1024 threads in whole warps, and at most 228 KiB of shared memory";
    }
    dynamic_shared = dynamic;
    blockDim = {count, 1, 1};
    gridDim = {blocks, 1, 1};
    kernel_body = body;
    kernel_context = context;
    failure[0] = 0;
    for (unsigned block = 0; block < blocks && failure[0] == 0; block++) {
        blockIdx = {block, 0, 0};
        // All ones is NaN in every format of floating point.
        memset(dynamic, 0xff, shared_bytes);
        memset(shared, 0xff, shared_end - shared);
        run_block(count);
    }
    memcpy(problem, failure, sizeof problem);
    return problem[0] == 0 ? nullptr : problem;
}
}  // namespace emulated
