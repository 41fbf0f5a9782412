#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace cyclip::emulation {

Pages::Pages(size_t bytes) : size_(bytes) {
  void* const pages =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<unsigned char*>(pages);
}

Pages::~Pages() {
  allow_access(data_, size_);
  munmap(data_, size_);
}

void Pages::protect(size_t offset, size_t bytes) { mprotect(data_ + offset, bytes, PROT_NONE); }

MirroredPages::MirroredPages(size_t bytes) : size_(bytes) {
  const int file = memfd_create("cyclip_emulation", MFD_CLOEXEC);
  const bool has_size = file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0;
  const auto map = [&] { return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0); };
  void* const data = has_size ? map() : MAP_FAILED;
  void* const mirror = has_size ? map() : MAP_FAILED;
  if (file >= 0) close(file);
  if (data == MAP_FAILED || mirror == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<unsigned char*>(data);
  mirror_ = static_cast<unsigned char*>(mirror);
}

MirroredPages::~MirroredPages() {
  allow_access(data_, size_);
  munmap(data_, size_);
  munmap(mirror_, size_);
}

Stacks::Stacks(int count) : pages_(count * kPitch) {
  for (int i = 0; i < count; ++i) pages_.protect(i * kPitch, kPage);
}

#if !defined(CYCLIP_UCONTEXT)

// Saves the registers that a callee must preserve on the stack, exchanges the stacks, and returns
// to the point at which the other one was left. (ucontext would also save the signal mask, by a
// system call.)
extern "C" void cyclip_emulation_exchange_stacks(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl cyclip_emulation_exchange_stacks
.hidden cyclip_emulation_exchange_stacks
.type cyclip_emulation_exchange_stacks, @function
cyclip_emulation_exchange_stacks:
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
.size cyclip_emulation_exchange_stacks, . - cyclip_emulation_exchange_stacks
)");

void Fiber::prepare(unsigned char* stack_bottom, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto* top = reinterpret_cast<uintptr_t*>(stack_bottom + Stacks::kBytes);
  *--top = 0;  // in place of the caller of `entry`, before whose call the stack was aligned to 16 bytes
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = 0;
  stack_pointer_ = top;
  bottom_ = stack_bottom;
  size_ = Stacks::kBytes;
}

#else

void Fiber::prepare(unsigned char* stack_bottom, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_bottom;
  context_.uc_stack.ss_size = Stacks::kBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
  bottom_ = stack_bottom;
  size_ = Stacks::kBytes;
}

#endif

CYCLIP_UNSEEN void Fiber::change(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
#if defined(CYCLIP_TSAN)
  __tsan_switch_to_fiber(to.identity, __tsan_switch_to_fiber_no_sync);
#elif defined(CYCLIP_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, to.bottom_, to.size_);
#endif
#if defined(CYCLIP_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  cyclip_emulation_exchange_stacks(&from.stack_pointer_, to.stack_pointer_);
#endif
#if defined(CYCLIP_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::arrived([[maybe_unused]] Fiber& host) {
#if defined(CYCLIP_ASAN)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (host.bottom_ == nullptr) {  // the first fiber comes from there
    host.bottom_ = bottom;
    host.size_ = size;
  }
#endif
}

void Fiber::adopt_running_thread() {
#if defined(CYCLIP_TSAN)
  identity = __tsan_get_current_fiber();
#endif
}

void* create_identity() {
#if defined(CYCLIP_TSAN)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}

void destroy_identity([[maybe_unused]] void* identity) {
#if defined(CYCLIP_TSAN)
  __tsan_destroy_fiber(identity);
#endif
}

}  // namespace cyclip::emulation
