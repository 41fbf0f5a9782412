// The choice of an instruction set, with and without a limit.

#include <stdexcept>
#include <string>

#include "check.h"
#include "kernels/cpu/isa.h"

namespace cyclip::test {

namespace {

using namespace cyclip::cpu;

void expect(bool condition, const std::string& what) { check_close(condition, 1, 0, what); }

void test_limits() {
  const IsaChoice unlimited = choose_isa(nullptr), baseline = choose_isa("baseline");
  expect(choose_isa("").isa == unlimited.isa, "an empty limit has no effect");
  expect(baseline.isa == Isa::kBaseline, "the baseline can always be chosen");
  if (unlimited.isa != Isa::kBaseline) {
    expect(baseline.description == "baseline (limited by CYCLIP_CPU_ISA)", baseline.description);
  }
#if defined(__x86_64__)
  expect(choose_isa("avx2").isa <= Isa::kAvx2, "a limit is obeyed");
  expect(choose_isa("avx512").isa <= Isa::kAvx512, "a limit is obeyed");
#endif
}

void test_unknown_name() {
  std::string message;
  try {
    choose_isa("avx3");
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  expect(message.find("baseline") != std::string::npos, "the message lists the names: " + message);
  expect(message.find("\"avx3\"") != std::string::npos, "the message contains the value: " + message);
}

}  // namespace

}  // namespace cyclip::test

int main() {
  cyclip::test::test_limits();
  cyclip::test::test_unknown_name();
  std::printf("%s\n", cyclip::cpu::chosen_isa().description.c_str());
  return cyclip::test::exit_code();
}
