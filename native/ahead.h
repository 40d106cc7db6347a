// Part of kernel.cpp, which includes it within its namespace: where a page holds what, and fetching it early.
#pragma once

const uint8_t* plane_row(const Coding& coding, const Page& page, const Run& run, int batch, int row) {
  const int64_t bytes = page.held * run.bits / 8;
  return page.planes[run.plane] + (int64_t(batch) * coding.rows[run.plane] + run.row + row) * bytes;
}

const uint16_t* token_row(const Coding& coding, const Page& page, const uint16_t* array, int batch, int group) {
  const int64_t groups = int64_t(coding.heads) * coding.components / coding.group;
  return array + (batch * groups + group) * page.held;
}

// Memory that will be read for the next item, fetched a few lines at a time while this one is computed: many at once
// would keep what is being read from coming.
class Ahead {
 public:
  // What a head of a page holds, to be fetched in about so many steps.
  void plan(const Problem& p, const Item& item, int steps) {
    std::size_t bytes = 0;
    for (const Side* side : {&p.keys, &p.values}) bytes += add(*side, item);
    lines_ = int(bytes / 64 / std::max(steps, 1)) + 1;
  }

  INLINE void step() { fetch(lines_); }

  INLINE void fetch(int lines) {
    while (lines-- && current_ < count_) {
      Range& range = ranges_[current_];
      __builtin_prefetch(range.at, 0, 2);
      range.at += 64;
      if (range.at >= range.end) ++current_;
    }
  }

 private:
  static constexpr int kRanges = 32;
  struct Range {
    const char *at, *end;
  } ranges_[kRanges];
  int count_ = 0, current_ = 0, lines_ = 0;

  std::size_t add(const Side& side, const Item& item) {
    if (!side.coding || item.page < 0) return 0;
    const Coding& coding = *side.coding;
    const Page& page = side.pages[item.page];
    const int64_t row = int64_t(item.batch) * coding.heads + item.head, C = coding.components;
    std::size_t bytes = 0;
    const auto range = [&](const void* at, std::size_t size) {
      if (count_ == kRanges || !size) return;
      ranges_[count_++] = {static_cast<const char*>(at), static_cast<const char*>(at) + size};
      bytes += size;
    };
    if (page.gain) range(page.gain + row * page.held, page.held);
    for (const uint16_t* scales : {page.scale, page.offset}) {
      if (!scales) continue;
      const bool channel = coding.scale == Scale::channel;
      const int64_t each = channel ? C * (page.held / coding.page) : coding.runs[item.head].size() * page.held;
      range(channel ? scales + row * each : token_row(coding, page, scales, item.batch, int(item.head * C / coding.group)), 2 * each);
    }
    for (const Run& run : coding.runs[item.head]) range(plane_row(coding, page, run, item.batch, 0), run.count * (page.held * run.bits / 8));
    return bytes;
  }
};
