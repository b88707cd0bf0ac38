// What csrc/bind.cpp calls: one function per kernel family.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

void bind_adamw(pybind11::module_& m);
void bind_layouts(pybind11::module_& m);
void bind_salient(pybind11::module_& m);
void bind_same_objects(pybind11::module_& m);
void bind_topk(pybind11::module_& m);
void bind_winograd(pybind11::module_& m);
