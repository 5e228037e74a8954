"""The orders of one product, in price-time priority, on plain integers; see book.pyi for the contract.

Prices stand in a direct table of levels over the product's price band; a bitmap of 64-way branches finds the next level in a
handful of steps, whatever the book looks like. The table is mapped memory: pages that no price touches cost nothing.
Orders are nodes of a growing pool, linked within their level. A node's index is the order's number, so no lookup is hashed.
"""

from cpython.buffer cimport PyBUF_CONTIG_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

cdef extern from *:
    """
    #define wm_ctz(x) __builtin_ctzll(x)
    #define wm_clz(x) __builtin_clzll(x)
    """
    int wm_ctz(uint64_t) noexcept nogil
    int wm_clz(uint64_t) noexcept nogil
    ctypedef long long int128 "__int128"

BUY, SELL = 0, 1
REST, IOC, FOK = 0, 1, 2
CANCEL_NEWEST, CANCEL_OLDEST, CANCEL_BOTH = 0, 1, 2

cdef enum:
    C_BUY = 0
    C_SELL = 1
    C_REST = 0
    C_IOC = 1
    C_FOK = 2
    C_NEWEST = 0
    C_OLDEST = 1
    C_BOTH = 2
    DEPTH = 4
    LARGEST_SPAN = 1 << 24

cdef int64_t LARGEST_QUANTITY = 1 << 40

cdef struct Node:
    int64_t quantity
    int32_t price
    int32_t owner
    int32_t prev
    int32_t next
    int32_t side

cdef struct Level:
    int64_t total
    int32_t head
    int32_t tail
    int32_t count

cdef struct Fill:
    int64_t price
    int64_t quantity
    int32_t maker
    int32_t taker

cdef struct Share:
    int64_t quantity
    int64_t rest
    int32_t number

cdef struct Side:
    Level* levels
    uint64_t* bits[DEPTH]
    int64_t best


cdef int _by_rest(const void* a, const void* b) noexcept nogil:
    """Largest remainder first, then the earlier order."""
    cdef const Share* one = <const Share*>a
    cdef const Share* two = <const Share*>b
    if one.rest != two.rest:
        return -1 if one.rest > two.rest else 1
    return -1 if one.number < two.number else 1


cdef int _by_number(const void* a, const void* b) noexcept nogil:
    return -1 if (<const Share*>a).number < (<const Share*>b).number else 1


cdef class Book:
    """See book.pyi."""

    cdef Side sides[2]
    cdef Node* nodes
    cdef int64_t node_room
    cdef Fill* log
    cdef int64_t log_room
    cdef int64_t span
    cdef int64_t words[DEPTH]
    cdef size_t table_bytes
    cdef readonly int64_t min_price
    cdef readonly int64_t max_price
    cdef readonly int64_t last_number
    cdef readonly int64_t fill_count
    cdef readonly int64_t live_count
    cdef readonly int64_t filled
    cdef readonly int64_t left
    cdef readonly bint rested
    cdef readonly bint self_trade
    cdef readonly list withdrawn
    cdef public bint matching
    cdef public int self_trade_rule

    def __cinit__(self, int64_t min_price, int64_t max_price, *, bint matching=True, int self_trade_rule=C_NEWEST):
        cdef int side, depth
        cdef int64_t words
        if not -LARGEST_SPAN <= min_price <= max_price <= LARGEST_SPAN or max_price - min_price >= LARGEST_SPAN:
            raise ValueError(f"a price band of {min_price} to {max_price}: at most {LARGEST_SPAN} ticks")
        if not C_NEWEST <= self_trade_rule <= C_BOTH:
            raise ValueError(f"self-trade rule {self_trade_rule}")
        self.min_price, self.max_price = min_price, max_price
        self.span = max_price - min_price + 1
        self.matching, self.self_trade_rule = matching, self_trade_rule
        self.withdrawn = []
        self.table_bytes = self.span * sizeof(Level)
        words = self.span
        for depth in range(DEPTH):
            words = (words + 63) // 64
            self.words[depth] = words
        for side in range(2):
            self.sides[side].best = -1
            self.sides[side].levels = <Level*>mmap(
                NULL, self.table_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
            )
            if <void*>self.sides[side].levels == MAP_FAILED:
                self.sides[side].levels = NULL
                raise MemoryError
            for depth in range(DEPTH):
                self.sides[side].bits[depth] = <uint64_t*>calloc(self.words[depth], sizeof(uint64_t))
                if self.sides[side].bits[depth] == NULL:
                    raise MemoryError
        self._room_for_nodes(64)

    def __dealloc__(self):
        cdef int side, depth
        for side in range(2):
            if self.sides[side].levels != NULL:
                munmap(self.sides[side].levels, self.table_bytes)
            for depth in range(DEPTH):
                free(self.sides[side].bits[depth])
        free(self.nodes)
        free(self.log)

    # -- memory

    cdef int _room_for_nodes(self, int64_t wanted) except -1:
        cdef Node* grown
        cdef int64_t room
        if wanted < self.node_room:
            return 0
        room = max(wanted + 1, self.node_room * 2)
        if room > 2**31 - 2:
            raise MemoryError("a product of over two thousand million orders")
        grown = <Node*>realloc(self.nodes, room * sizeof(Node))
        if grown == NULL:
            raise MemoryError
        memset(grown + self.node_room, 0, (room - self.node_room) * sizeof(Node))
        self.nodes, self.node_room = grown, room
        return 0

    cdef int _room_in_log(self) except -1:
        cdef Fill* grown
        cdef int64_t room
        if self.fill_count < self.log_room:
            return 0
        room = max(64, self.log_room * 2)
        grown = <Fill*>realloc(self.log, room * sizeof(Fill))
        if grown == NULL:
            raise MemoryError
        self.log, self.log_room = grown, room
        return 0

    cdef inline int _record(self, int32_t maker, int32_t taker, int64_t price, int64_t quantity) except -1:
        self._room_in_log()
        self.log[self.fill_count].maker = maker
        self.log[self.fill_count].taker = taker
        self.log[self.fill_count].price = price
        self.log[self.fill_count].quantity = quantity
        self.fill_count += 1
        return 0

    # -- the bitmap

    cdef inline void _mark(self, int side, int64_t index) noexcept nogil:
        cdef int depth
        for depth in range(DEPTH):
            self.sides[side].bits[depth][index >> 6] |= (<uint64_t>1) << (index & 63)
            index >>= 6

    cdef inline void _unmark(self, int side, int64_t index) noexcept nogil:
        cdef int depth
        for depth in range(DEPTH):
            self.sides[side].bits[depth][index >> 6] &= ~((<uint64_t>1) << (index & 63))
            if self.sides[side].bits[depth][index >> 6]:
                return
            index >>= 6

    cdef int64_t _up(self, int side, int64_t index) noexcept nogil:
        """The lowest marked index that is not below; -1 for none."""
        cdef int depth
        cdef uint64_t word
        for depth in range(DEPTH):
            if (index >> 6) >= self.words[depth]:
                return -1
            word = self.sides[side].bits[depth][index >> 6] >> (index & 63)
            if word:
                index += wm_ctz(word)
                while depth > 0:
                    depth -= 1
                    index = (index << 6) + wm_ctz(self.sides[side].bits[depth][index])
                return index
            index = (index >> 6) + 1
        return -1

    cdef int64_t _down(self, int side, int64_t index) noexcept nogil:
        """The highest marked index that is not above; -1 for none."""
        cdef int depth
        cdef uint64_t word
        for depth in range(DEPTH):
            if index < 0:
                return -1
            word = self.sides[side].bits[depth][index >> 6] << (63 - (index & 63))
            if word:
                index -= wm_clz(word)
                while depth > 0:
                    depth -= 1
                    index = (index << 6) + 63 - wm_clz(self.sides[side].bits[depth][index])
                return index
            index = (index >> 6) - 1
        return -1

    cdef inline int64_t _worse(self, int side, int64_t index) noexcept nogil:
        """The next level away from the best one."""
        return self._down(side, index - 1) if side == C_BUY else self._up(side, index + 1)

    # -- queues

    cdef void _append(self, int32_t number) noexcept nogil:
        cdef Node* node = &self.nodes[number]
        cdef int side = node.side
        cdef int64_t index = node.price - self.min_price
        cdef Level* level = &self.sides[side].levels[index]
        cdef int64_t best = self.sides[side].best
        node.prev, node.next = level.tail, 0
        if level.tail:
            self.nodes[level.tail].next = number
        else:
            level.head = number
            self._mark(side, index)
            if best < 0 or (index > best if side == C_BUY else index < best):
                self.sides[side].best = index
        level.tail = number
        level.total += node.quantity
        level.count += 1
        self.live_count += 1

    cdef void _remove(self, int32_t number) noexcept nogil:
        """Take an order out of its queue; its quantity is left for the caller to read and clear."""
        cdef Node* node = &self.nodes[number]
        cdef int side = node.side
        cdef int64_t index = node.price - self.min_price
        cdef Level* level = &self.sides[side].levels[index]
        if node.prev:
            self.nodes[node.prev].next = node.next
        else:
            level.head = node.next
        if node.next:
            self.nodes[node.next].prev = node.prev
        else:
            level.tail = node.prev
        level.total -= node.quantity
        level.count -= 1
        self.live_count -= 1
        if level.head == 0:
            self._unmark(side, index)
            if self.sides[side].best == index:
                self.sides[side].best = self._worse(side, index)

    # -- matching

    cdef bint _fillable(self, int32_t owner, int side, int64_t limit, int64_t quantity) noexcept nogil:
        """Whether all of it would trade now, by the rule on trades with oneself."""
        cdef int other = 1 - side
        cdef int64_t index = self.sides[other].best
        cdef int32_t number
        while index >= 0 and (index <= limit if side == C_BUY else index >= limit):
            number = self.sides[other].levels[index].head
            while number:
                if self.nodes[number].owner == owner:
                    if self.self_trade_rule != C_OLDEST:
                        return False
                else:
                    quantity -= self.nodes[number].quantity
                    if quantity <= 0:
                        return True
                number = self.nodes[number].next
            index = self._worse(other, index)
        return False

    cdef int _match(self, int32_t taker, int64_t limit) except -1:
        """Trade an order that stands in no queue against the other side, as far as its limit goes."""
        cdef int side = self.nodes[taker].side
        cdef int other = 1 - side
        cdef int32_t owner = self.nodes[taker].owner
        cdef int64_t left = self.nodes[taker].quantity
        cdef int64_t index, quantity
        cdef int32_t maker
        cdef Level* level
        while left:
            index = self.sides[other].best
            if index < 0 or (index > limit if side == C_BUY else index < limit):
                break
            level = &self.sides[other].levels[index]
            maker = level.head
            if self.nodes[maker].owner == owner:
                self.self_trade = True
                if self.self_trade_rule != C_NEWEST:
                    self._remove(maker)
                    self.withdrawn.append((maker, self.nodes[maker].quantity))
                    self.nodes[maker].quantity = 0
                if self.self_trade_rule != C_OLDEST:
                    self.nodes[taker].quantity = 0
                    self.left = left
                    return 0
                continue
            quantity = min(left, self.nodes[maker].quantity)
            self._record(maker, taker, index + self.min_price, quantity)
            left -= quantity
            self.filled += quantity
            if quantity == self.nodes[maker].quantity:
                self._remove(maker)
                self.nodes[maker].quantity = 0
            else:
                self.nodes[maker].quantity -= quantity
                level.total -= quantity
        self.nodes[taker].quantity = left
        self.left = left
        return 0

    def place(self, int32_t owner, int side, int64_t price, int64_t quantity, int rule=C_REST):
        """See book.pyi."""
        cdef int32_t number
        cdef int64_t limit = price - self.min_price
        if not self.min_price <= price <= self.max_price:
            raise ValueError(f"a price of {price}, outside {self.min_price} to {self.max_price}")
        if not 0 < quantity <= LARGEST_QUANTITY:
            raise ValueError(f"a quantity of {quantity}")
        if side & ~1 or not C_REST <= rule <= C_FOK:
            raise ValueError(f"side {side}, rule {rule}")
        self.filled, self.rested, self.self_trade = 0, False, False
        if self.withdrawn:
            self.withdrawn = []
        self._room_for_nodes(self.last_number + 2)
        self.last_number += 1
        number = <int32_t>self.last_number
        self.nodes[number].price = <int32_t>price
        self.nodes[number].owner = owner
        self.nodes[number].side = side
        self.nodes[number].quantity = quantity
        self.left = quantity
        if self.matching and (rule != C_FOK or self._fillable(owner, side, limit, quantity)):
            self._match(number, limit)
        if rule == C_REST and self.nodes[number].quantity:
            self._append(number)
            self.rested = True
        else:
            self.nodes[number].quantity = 0
        return number

    def cancel(self, int64_t number):
        """See book.pyi."""
        cdef int64_t quantity
        if not 0 < number <= self.last_number or self.nodes[number].quantity == 0:
            return 0
        quantity = self.nodes[number].quantity
        self._remove(<int32_t>number)
        self.nodes[number].quantity = 0
        return quantity

    def amend(self, int64_t number, int64_t price, int64_t quantity):
        """See book.pyi."""
        cdef Node* node
        if not 0 < number <= self.last_number or self.nodes[number].quantity == 0:
            return False
        if not self.min_price <= price <= self.max_price or not 0 < quantity <= LARGEST_QUANTITY:
            raise ValueError(f"amended to {quantity} at {price}")
        node = &self.nodes[number]
        self.filled, self.rested, self.self_trade = 0, True, False
        if self.withdrawn:
            self.withdrawn = []
        self.left = quantity
        if price == node.price and quantity <= node.quantity:
            self.sides[node.side].levels[price - self.min_price].total -= node.quantity - quantity
            node.quantity = quantity
            return True
        self._remove(<int32_t>number)
        node.price, node.quantity = <int32_t>price, quantity
        if self.matching:
            self._match(<int32_t>number, price - self.min_price)
        self.rested = self.nodes[number].quantity > 0
        if self.rested:
            self._append(<int32_t>number)
        return True

    # -- the call auction

    def uncross(self, *, bint pay_as_bid=False):
        """See book.pyi."""
        cdef int64_t bid = self.sides[C_BUY].best, ask = self.sides[C_SELL].best
        cdef int64_t bid_left, ask_left, volume = 0, quantity, last_bid = -1, last_ask = -1, low, high
        self.withdrawn = []
        bid_left = self.sides[C_BUY].levels[bid].total if bid >= 0 else 0
        ask_left = self.sides[C_SELL].levels[ask].total if ask >= 0 else 0
        while bid >= 0 and ask >= 0 and bid >= ask:
            quantity = min(bid_left, ask_left)
            volume += quantity
            last_bid, last_ask = bid, ask
            bid_left -= quantity
            ask_left -= quantity
            if bid_left == 0:
                bid = self._worse(C_BUY, bid)
                bid_left = self.sides[C_BUY].levels[bid].total if bid >= 0 else 0
            if ask_left == 0:
                ask = self._worse(C_SELL, ask)
                ask_left = self.sides[C_SELL].levels[ask].total if ask >= 0 else 0
        if volume == 0:
            return None
        # bid and ask now stand at the best energy that did not trade: the price must not be better for either
        low = max(last_ask, bid) if bid >= 0 else last_ask
        high = min(last_bid, ask) if ask >= 0 else last_bid
        price = (low + high + 2 * self.min_price) >> 1
        self._settle(volume, price, pay_as_bid)
        return price, volume

    cdef int _settle(self, int64_t volume, int64_t price, bint pay_as_bid) except -1:
        """Share the volume on both sides, pair the shares in priority and take what traded out of the queues."""
        cdef Share* bought = NULL
        cdef Share* sold = NULL
        cdef int64_t i = 0, j = 0, quantity, buyers = 0, sellers = 0
        try:
            bought = self._shares(C_BUY, volume, &buyers)
            sold = self._shares(C_SELL, volume, &sellers)
            while i < buyers and j < sellers:
                quantity = min(bought[i].quantity, sold[j].quantity)
                if pay_as_bid:
                    price = self.nodes[bought[i].number].price
                self._record(sold[j].number, bought[i].number, price, quantity)
                self._reduce(bought[i].number, quantity)
                self._reduce(sold[j].number, quantity)
                bought[i].quantity -= quantity
                sold[j].quantity -= quantity
                if bought[i].quantity == 0:
                    i += 1
                if sold[j].quantity == 0:
                    j += 1
        finally:
            free(bought)
            free(sold)
        return 0

    cdef void _reduce(self, int32_t number, int64_t quantity) noexcept nogil:
        cdef Node* node = &self.nodes[number]
        if node.quantity == quantity:
            self._remove(number)
        else:
            self.sides[node.side].levels[node.price - self.min_price].total -= quantity
        node.quantity -= quantity

    cdef Share* _shares(self, int side, int64_t volume, int64_t* count) except NULL:
        """What each order of a side gets: level by level fully, the last level in proportion to quantity."""
        cdef int64_t index = self.sides[side].best, left = volume, room = 0, n = 0, first, given, total
        cdef Level* level
        cdef int32_t number
        cdef Share* shares
        cdef int128 product
        while index >= 0 and left > 0:
            room += self.sides[side].levels[index].count
            left -= self.sides[side].levels[index].total
            index = self._worse(side, index)
        shares = <Share*>malloc((room + 1) * sizeof(Share))
        if shares == NULL:
            raise MemoryError
        index, left = self.sides[side].best, volume
        while left > 0:
            level = &self.sides[side].levels[index]
            first, given, total = n, 0, level.total
            number = level.head
            while number:
                shares[n].number = number
                if total <= left:
                    shares[n].quantity = self.nodes[number].quantity
                else:
                    product = <int128>self.nodes[number].quantity * left
                    shares[n].quantity = <int64_t>(product / total)
                    shares[n].rest = <int64_t>(product % total)
                given += shares[n].quantity
                n += 1
                number = self.nodes[number].next
            if total > left:
                qsort(shares + first, n - first, sizeof(Share), _by_rest)
                for number in range(<int32_t>(left - given)):
                    shares[first + number].quantity += 1
                qsort(shares + first, n - first, sizeof(Share), _by_number)
                given = left
            left -= given
            index = self._worse(side, index)
        # orders that got nothing are no part of the pairing
        room, first = n, 0
        for n in range(room):
            if shares[n].quantity:
                shares[first] = shares[n]
                first += 1
        count[0] = first
        return shares

    # -- looking

    def fills(self, int64_t first=0):
        """See book.pyi."""
        cdef int64_t i
        return [
            (self.log[i].maker, self.log[i].taker, self.log[i].price, self.log[i].quantity)
            for i in range(max(0, first), self.fill_count)
        ]

    def order(self, int64_t number):
        """See book.pyi."""
        cdef Node* node
        if not 0 < number <= self.last_number or self.nodes[number].quantity == 0:
            return None
        node = &self.nodes[number]
        return node.owner, node.side, node.price, node.quantity

    def remaining(self, int64_t number):
        """See book.pyi."""
        return self.nodes[number].quantity if 0 < number <= self.last_number else 0

    def best(self, int side):
        """See book.pyi."""
        if side & ~1:
            raise ValueError(f"side {side}")
        return None if self.sides[side].best < 0 else self.sides[side].best + self.min_price

    def depth(self, int side, int64_t levels=10):
        """See book.pyi."""
        cdef int64_t index
        if side & ~1:
            raise ValueError(f"side {side}")
        found = []
        index = self.sides[side].best
        while index >= 0 and len(found) < levels:
            found.append(
                (index + self.min_price, self.sides[side].levels[index].total, self.sides[side].levels[index].count)
            )
            index = self._worse(side, index)
        return found

    def queue(self, int side):
        """See book.pyi."""
        cdef int64_t index
        cdef int32_t number
        if side & ~1:
            raise ValueError(f"side {side}")
        found = []
        index = self.sides[side].best
        while index >= 0:
            number = self.sides[side].levels[index].head
            while number:
                found.append(number)
                number = self.nodes[number].next
            index = self._worse(side, index)
        return found

    # -- in bulk

    def load(self, owners, sides, prices, quantities):
        """See book.pyi."""
        cdef Py_buffer views[4]
        cdef int opened = 0
        cdef int64_t i, n
        cdef int64_t* column[4]
        try:
            for part in (owners, sides, prices, quantities):
                PyObject_GetBuffer(part, &views[opened], PyBUF_CONTIG_RO)
                column[opened] = <int64_t*>views[opened].buf
                opened += 1
                if views[opened - 1].itemsize != 8 or views[opened - 1].len != views[0].len:
                    raise ValueError("four columns of 64-bit integers of one length")
            n = views[0].len // 8
            for i in range(n):
                if not self.min_price <= column[2][i] <= self.max_price or not 0 < column[3][i] <= LARGEST_QUANTITY:
                    raise ValueError(f"row {i}: {column[3][i]} at {column[2][i]}")
                if column[1][i] & ~(<int64_t>1):
                    raise ValueError(f"row {i}: side {column[1][i]}")
            self._room_for_nodes(self.last_number + n + 1)
            for i in range(n):
                self.last_number += 1
                self.nodes[self.last_number].price = <int32_t>column[2][i]
                self.nodes[self.last_number].owner = <int32_t>column[0][i]
                self.nodes[self.last_number].side = <int32_t>column[1][i]
                self.nodes[self.last_number].quantity = column[3][i]
                self._append(<int32_t>self.last_number)
        finally:
            for i in range(opened):
                PyBuffer_Release(&views[i])
        return n

    def dump(self):
        """See book.pyi."""
        rows = [[number, *self.order(number)] for side in (C_BUY, C_SELL) for number in self.queue(side)]
        return {"last_number": self.last_number, "matching": self.matching, "orders": rows}

    def restore(self, state):
        """See book.pyi."""
        cdef int64_t number
        if self.last_number or self.fill_count:
            raise ValueError("only an empty book is restored")
        self._room_for_nodes(state["last_number"] + 1)
        self.last_number = state["last_number"]
        self.matching = state["matching"]
        for number, owner, side, price, quantity in state["orders"]:
            if not (0 < number <= self.last_number and self.min_price <= price <= self.max_price and side in (0, 1)):
                raise ValueError(f"order {number} of a snapshot is none")
            self.nodes[number].owner, self.nodes[number].side = owner, side
            self.nodes[number].price, self.nodes[number].quantity = price, quantity
            self._append(<int32_t>number)
