#include "bind.h"
void bind_adamw(pybind11::module_ &m) { (void)m; }
