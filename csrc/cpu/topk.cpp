#include "bind.h"
void bind_topk(pybind11::module_ &m) { (void)m; }
