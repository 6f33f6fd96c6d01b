#include "core/error.hpp"
#include "core/view.hpp"

namespace nf {

std::string to_string(const Shape &shape) {
    std::string text = "(";
    for (size_t axis = 0; axis < shape.size(); ++axis)
        text += (axis ? ", " : "") + std::to_string(shape[axis]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

void fail_value(const char *operation, const std::string &message) { throw ValueError(operation + (": " + message)); }
void fail_type(const char *operation, const std::string &message) { throw TypeError(operation + (": " + message)); }

} // namespace nf
