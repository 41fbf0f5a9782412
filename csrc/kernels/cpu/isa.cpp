#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(CYCLIP_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cyclip::cpu {

namespace {

struct Candidate {
  Isa isa;
  const char* name;
  const char* (*obstacle)();  // the reason that it cannot be used on this machine, or null
};

const char* no_obstacle() { return nullptr; }

#if defined(__x86_64__)

const char* obstacle_unless(bool supported) { return supported ? nullptr : "not supported by this processor"; }

const char* avx2_obstacle() {
  __builtin_cpu_init();
  return obstacle_unless(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
}

const char* avx512_obstacle() {
  __builtin_cpu_init();
  return obstacle_unless(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}

const char* avx512bf16_obstacle() {
  __builtin_cpu_init();
  return obstacle_unless(__builtin_cpu_supports("avx512bf16"));
}

#if defined(CYCLIP_AMX_TWIN)
const char* amx_obstacle() { return nullptr; }
#elif defined(CYCLIP_HAS_AMX)
// Whether the operating system saves the tile registers (bits 17 and 18 of XCR0).
bool saves_tiles() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned tiles = 3u << 17;
  return (low & tiles) == tiles;
}

const char* amx_obstacle() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & amx_bf16) || !(edx & amx_tile)) {
    return obstacle_unless(false);
  }
  // Linux enables the tile registers for a process only on request; all of its threads then have them. The
  // request fails if a thread has an alternate signal stack that is too small for them.
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (!saves_tiles() || syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
    return "not permitted by the operating system";
  }
  return nullptr;
}
#endif

constexpr Candidate kCandidates[] = {{Isa::kBaseline, "baseline", no_obstacle},
                                     {Isa::kAvx2, "avx2", avx2_obstacle},
                                     {Isa::kAvx512, "avx512", avx512_obstacle},
                                     {Isa::kAvx512Bf16, "avx512bf16", avx512bf16_obstacle},
#if defined(CYCLIP_HAS_AMX)
                                     {Isa::kAmx, "amx", amx_obstacle}
#endif
};
#elif defined(__aarch64__)
constexpr Candidate kCandidates[] = {{Isa::kBaseline, "baseline", no_obstacle}, {Isa::kNeon, "neon", no_obstacle}};
#else
constexpr Candidate kCandidates[] = {{Isa::kBaseline, "baseline", no_obstacle}};
#endif

}  // namespace

IsaChoice choose_isa(const char* limit) {
  const bool limited = limit != nullptr && *limit != '\0';
  std::string names;
  bool is_known = !limited;
  for (const Candidate& candidate : kCandidates) {
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    is_known = is_known || std::string(candidate.name) == limit;
  }
  if (!is_known) {
    throw std::invalid_argument("CYCLIP_CPU_ISA must be one of " + names + ", got \"" + limit + "\"");
  }

  const Candidate* chosen = nullptr;
  std::string reason;
  for (const Candidate& candidate : kCandidates) {
    if (const char* obstacle = candidate.obstacle()) {
      reason = std::string(candidate.name) + " is " + obstacle;
      break;
    }
    chosen = &candidate;
    if (limited && std::string(candidate.name) == limit) {
      reason = "limited by CYCLIP_CPU_ISA";
      break;
    }
  }
  return {chosen->isa, chosen->name + (reason.empty() ? "" : " (" + reason + ")")};
}

const IsaChoice& chosen_isa() {
  static const IsaChoice choice = choose_isa(std::getenv("CYCLIP_CPU_ISA"));
  return choice;
}

}  // namespace cyclip::cpu
