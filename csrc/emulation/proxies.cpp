#include "proxies.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>

#include "block.h"

namespace cyclip::emulation {

namespace {

constinit thread_local ProxyGuard* observing = nullptr;
struct sigaction previous;

// Faults elsewhere are repeated under the previous handler.
CYCLIP_UNSEEN void on_fault(int signal, siginfo_t* info, void*) {
  if (observing == nullptr || !observing->observe(info->si_addr)) sigaction(signal, &previous, nullptr);
}

void install_handler() {
  struct sigaction current;
  sigaction(SIGSEGV, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == &on_fault) return;
  previous = current;
  struct sigaction ours = {};
  ours.sa_sigaction = &on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGSEGV, &ours, nullptr);
}

}  // namespace

ProxyGuard::ProxyGuard(SharedMemory& shared)
    : begin_(shared.dynamic()), first_offset_(shared.offset(begin_)), bytes_(shared.dynamic_bytes()) {
  pages_.resize((bytes_ + kPageBytes - 1) / kPageBytes);
  observed_.resize(pages_.size());
}

ProxyGuard::~ProxyGuard() {
  if (!is_started_) return;
  mprotect(begin_, pages_.size() * kPageBytes, PROT_READ | PROT_WRITE);
  observing = nullptr;
}

void ProxyGuard::start() {
  if (is_started_ || pages_.empty()) return;
  is_started_ = true;
  install_handler();
  observing = this;
  mprotect(begin_, pages_.size() * kPageBytes, PROT_NONE);
}

CYCLIP_UNSEEN void ProxyGuard::protect(size_t page, bool is_open) {
  pages_[page].is_open = is_open;
  mprotect(begin_ + page * kPageBytes, kPageBytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

CYCLIP_UNSEEN bool ProxyGuard::observe(void* address) {
  const Unseen unseen;
  const auto byte = static_cast<size_t>(static_cast<unsigned char*>(address) - begin_);
  if (!is_started_ || byte >= pages_.size() * kPageBytes || pages_[byte / kPageBytes].is_open) return false;
  observed_[observed_count_++] = {running.block->number_of(*running.thread), byte};
  protect(byte / kPageBytes, true);
  return true;
}

void ProxyGuard::collect() {
  for (; observed_count_ > 0; --observed_count_) {
    const Access& access = observed_[observed_count_ - 1];
    Page& page = pages_[access.byte / kPageBytes];
    page.unfenced.push_back(access);
    if (page.is_asynchronous) protect(access.byte / kPageBytes, false);
  }
}

int ProxyGuard::use_asynchronously(uint32_t offset, size_t bytes) {
  collect();
  const size_t begin = offset - first_offset_, end = begin + bytes;
  for (size_t number = begin / kPageBytes; number * kPageBytes < end && number < pages_.size(); ++number) {
    Page& page = pages_[number];
    for (const Access& access : page.unfenced) {
      if (access.byte >= begin && access.byte < end) return access.thread;
    }
    page.is_asynchronous = true;
    if (page.is_open) protect(number, false);
  }
  return -1;
}

void ProxyGuard::fence(int thread) {
  collect();
  for (Page& page : pages_)
    std::erase_if(page.unfenced, [&](const Access& access) { return access.thread == thread; });
}

CYCLIP_UNSEEN void ProxyGuard::switch_threads() {
  if (observed_count_ == 0) return;
  const Unseen unseen;
  collect();
}

}  // namespace cyclip::emulation
