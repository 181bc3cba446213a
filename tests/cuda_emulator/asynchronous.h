// What works on its own while threads go on: copies (cp.async, bulk, tensor), mbarriers, products of
// warpgroups.
//
// Every operation marks what it touches when it is begun: until the thread that needs it has waited
// in the way that the PTX manual asks for, any other touch fails. Data arrive when a wait needs
// them, or when no thread can run.
#pragma once
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "memory.h"
#include "scheduler.h"

namespace emulator {

struct Mbarrier {
  unsigned arrivals = 0, pending = 0;  // of a phase; still to come
  int64_t transactions = 0;            // bytes expected, less those that came
  uint32_t phase = 0;                  // phases completed
  int engine = -1;
  bool seen_by_engines = false;  // its initialisation was fenced
  Access initialised;
  Clocks arriving, completed;  // what those who arrive hand to those who wait
};

struct Copy {
  unsigned char* to;
  std::vector<unsigned char> data;
};

struct CopyGroup {
  std::vector<Copy> copies;
  const void* place = nullptr;
};

struct Flight {
  Copy copy;
  Mbarrier* barrier;
  int thread;
  const void* place;
};

struct Stores {
  int engine = -1;
  uint32_t committed = 0, finished = 0;
  bool open = false;
  const void* place = nullptr;
};

struct Products {
  int engine = -1;
  uint32_t committed = 0, finished = 0;  // groups, as of the whole warpgroup
  bool open = false;
  const void* place = nullptr;
};

struct Registers {
  int count;  // per thread
  const void* place;
};

struct Asynchronous {
  std::map<const void*, Mbarrier> barriers;
  std::deque<Flight> flights;
  std::vector<CopyGroup> open_copies;         // by thread
  std::vector<std::deque<CopyGroup>> copies;  // committed
  std::map<int, Stores> stores;               // by thread
  std::map<int, Products> products;           // by thread
  std::map<int, int> product_engines;         // by warp
  std::map<int, uint32_t> register_fences;    // by thread
  std::map<int, Registers> registers;         // by warp, once setmaxnreg said so
};

int new_engine(const void* place);
Access present_access();
Mbarrier& barrier_of(const void* at, const void* place);
// Copies `data` to shared memory when the time comes, and then counts the bytes on the barrier.
void begin_load(void* shared, std::vector<unsigned char> data, Mbarrier& barrier,
                const void* place);
// Notes that the running thread's next group of bulk stores reads this.
void begin_store(const void* shared, size_t bytes, const void* place);

}  // namespace emulator
