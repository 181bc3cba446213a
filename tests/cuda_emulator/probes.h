// Kernels that carry out one instruction each, so that a test can compare what it did with the
// manual's words: ../test_cuda_instructions.py.
#pragma once
#include <cuda.h>

#include <cstdint>

struct Probe {
  const unsigned char* from;
  unsigned char* to;
  int64_t numbers[12];
  CUtensorMap map;
};

struct NamedProbe {
  const char* name;
  void (*kernel)(const Probe);
  int threads;
  int blocks = 1;
  bool together = false;  // all blocks run at once
};
