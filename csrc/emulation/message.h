// Error messages, and the places in the source that they name.

#pragma once

#include <sstream>
#include <string>

namespace cyclip::emulation {

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

struct Where {
  const char* file;
  int line;
  const char* function;

  // As a default argument, `Where where = Where::here()` is the location of the call.
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                              const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }

  std::string text() const { return message(file, ":", line, " (", function, ")"); }
};

}  // namespace cyclip::emulation
