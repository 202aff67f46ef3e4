/* The protocol of the engine, as a model that a checker exhausts: Spin tries every order of its steps.

   A purchase passes front door, gate, outbox, relay, bus, fulfilment and ledger, and is cleared at the gate. Each process
   below is a loop of steps. A step is what one script, one statement or one message does as a whole. Any two steps of
   different processes may come in any order: each process may be paused between two of them for as long as it likes.
   Last come what may happen to the processes, and what must hold whatever happens.

   One product; STOCK units in each of its SALES; a purchase takes one unit. A set of orders, or of processes, is a byte of
   bits. The gate numbers ORDERS as it accepts them. Outbox and bus keep no order here: more may happen than with real ones.

   Left out, for the reasons in reports/reference-model/stories.md: shards, limits and times of a sale, batches, dead letters,
   retiring, withdrawing and pruning, an engine without a bus, sales that another session holds, answers on their way, what is
   answered where nothing was sold, and losses of ledger and bus, on which the protocol relies.

   Bounds and switches are given in model.toml. KEYS: purchases may carry one Idempotency-Key. REPLICAS: the gate has a replica
   instead of a disk. LIVE: what must happen at last, in place of what must never happen. MUTANT: one thing is done wrong. */

/* What may be done wrong; model.toml says it in words. */
mtype = { NOTHING, ACKNOWLEDGES_BEFORE_CLEARING, ACKNOWLEDGES_BEFORE_COMMIT, ANSWERS_WITHOUT_COPIES, BEGINS_AT_AN_OPEN_GATE,
  BUS_BEFORE_OUTBOX, BUS_NOT_READ, CLEARS_BEFORE_SETTLING, CLEARS_NOTHING, CLEARS_WITHOUT_COPIES, CLOSES_A_LATER_ONE,
  CONSUMERS_NOT_COUNTED, COPY_NOT_NOTED, DELETES_FIRST, ENTRIES_ABANDONED, FORGETS_FAILED, GATE_READ_FIRST,
  GENERATION_UNCHECKED, KEY_IGNORED, KEY_KEPT, KEY_NOT_GUARDED, KEY_NOT_RESTORED, KEY_OF_THE_NEWEST, LEDGER_NOT_COMPARED,
  LOCK_KEPT, NOTED_WITHOUT_COPIES, NOTES_WITHOUT_COPIES, NOT_OFFERED, NO_AUDIT, NO_FENCE, NO_GUARD, NO_LOCK, NO_VOUCHING,
  NUMBERS_UNCHECKED, OLDER_SALE_WINS, OPENS_ELSEWHERE, OPENS_OVERTAKEN, OPENS_TOO_EARLY, OUTBOX_APART, OUTBOX_NOT_READ,
  PENDING_STAYS, PUTS_BACK, READ_ONLY_BEFORE, REBUILD_UNCHECKED, REFUSES_QUIETLY, REJECTS_AFTER_A_LOSS,
  RELAYS_WITHOUT_COPIES, RELEASES_NOTHING, RELEASES_REJECTED,
  RELEASES_TO_ANOTHER_SALE, RELEASES_TWICE, RELEASES_WITHOUT_EVIDENCE, REPEATS_WITHOUT_COPIES, REPLACES_A_NEWER_SALE,
  REVERTS_UNKNOWN, SALES_READ_EARLY, SERVER_NOT_NOTED, SETTLED_COPY_KEPT, SETTLES_TWICE };
#define mutant(name) (MUTANT == name)
#define bit(o) (1 << (o))
#define has(set, o) ((set) & bit(o))
#define count(set) (((set) & 1) + ((set) >> 1 & 1) + ((set) >> 2 & 1) + ((set) >> 3 & 1))
#define highest(set) ((set) & 8 -> 4 : ((set) & 4 -> 3 : ((set) & 2 -> 2 : (set) & 1)))   /* its number, plus 1 */
#define pick(set, o) if :: set & 1 -> o = 1 :: set & 2 -> o = 2 :: set & 4 -> o = 3 :: set & 8 -> o = 4 fi
#define broken(text) printf(text); assert(false)

/* ---- the stores ---- */
typedef Gate {             /* Redis, one shard */
  byte open = 1;           /* the generation; 0 while the gate is closed */
  byte rebuilding;         /* generation of the keeper that rebuilds it */
  bool noted = 1;          /* whether it says which server holds it */
  byte fresh;              /* writers whose last write the copy does not hold; see "the fence" */
  byte sale = 1;           /* the product's current sale; 0 without one */
  byte left = STOCK;       /* its units */
  byte key;                /* the order that the Idempotency-Key got, plus 1 */
  byte newest;             /* the newest order that the outbox or the last rebuild has known, plus 1 */
  byte lacks;              /* orders from before this server sold that are newer than all that its copy had */
  byte outbox;             /* orders that no relay has acknowledged */
  byte pending;            /* orders that are accepted and not settled: the evidence that their units are out */
  byte took                /* only for the judge: orders whose units this memory has taken and not given back */
}
Gate gate, new, copy;      /* The copy is an older state of it: on disk, or, with REPLICAS, the replica's. */
bool saved = REPLICAS;     /* whether there is a copy */
byte isolated;             /* with REPLICAS: outbox of an old primary that still answers, and that nobody follows */

inline assign(to, from) {
  to.open = from.open; to.rebuilding = from.rebuilding; to.noted = from.noted; to.fresh = from.fresh; to.sale = from.sale;
  to.left = from.left; to.key = from.key; to.newest = from.newest; to.lacks = from.lacks; to.outbox = from.outbox;
  to.pending = from.pending; to.took = from.took }

byte bus;                  /* RabbitMQ: orders with a message in the queue. A second one may as well come when it is taken. */
#define send(o) bus = bus | bit(o)

byte latest = 1, lock;     /* PostgreSQL: the gate's latest generation, the keeper that holds the advisory lock, plus 1, */
byte sales = 1, offered = 1;   /* the newest sale, and up to which the gate is known to have taken them, */
byte sold[3];              /* the units sold of each, */
byte confirmed, failed, rejected;   /* and the orders by their terminal states */
#define settled (confirmed | failed | rejected)
bool lossy; byte excused;  /* whether the gate has lost memory, and how many orders may be rejected because of it */
#define units_left(s) (STOCK - sold[s])

/* ---- the orders, and what the processes have in their memories ---- */
byte accepted;             /* orders that were accepted: all below this number; */
byte keyed, second;        /* those with the Idempotency-Key, and those of sale 2; */
byte told;                 /* with REPLICAS, those whose clients were answered 200; */
byte lost;                 /* those whose only entry went with the gate's memory. A relay may still hold one. */
#define sale_of(o) (has(second, o) -> 2 : 1)

byte asked = bit(DOORS) - 1;          /* doors that have asked the gate's server whether it remembers */
bool late;                            /* it has begun to sell, though some were paused and have not */
byte waits[DOORS];                    /* a door's order that waits for copies, plus 1 */
byte reads[RELAYS], way[RELAYS];      /* a relay's order, plus 1; 1 once it may be published, 2 once it is */
byte unread;                          /* only with a mutant: entries that no relay will claim */
byte holds[KEEPERS], step[KEEPERS];   /* a fulfilment's order, plus 1, and what it does with it next */
byte unacked;                         /* fulfilments whose delivery the bus has not taken back */
mtype = {COMPARE, CLEAR, CLOSE, NOTE, LOCK, NUMBER, BEGIN, READ_OUTBOX, READ_BUS, READ_SALES, RESTORE, REMEMBER, REOPEN};
mtype task[KEEPERS];                  /* what a keeper does next, in which generation, and what it has read in the ledger */
byte gen[KEEPERS], units[KEEPERS], of_sale[KEEPERS];
byte compared = bit(KEEPERS) - 1;     /* keepers that have compared this server with the ledger */
byte faults = FAULTS;
bool moved;                           /* another server holds the gate than the one at which its rebuild began */
#define LAST (KEEPERS - 1)
#define carried ((reads[0] -> bit(reads[0] - 1) : 0) | (reads[RELAYS - 1] -> bit(reads[RELAYS - 1] - 1) : 0))
#define held ((has(unacked, 0) -> bit(holds[0] - 1) : 0) | (has(unacked, LAST) -> bit(holds[LAST] - 1) : 0))

/* The fence. Each writer numbers its writes, and a script that finds a smaller number than its writer was answered closes
   the gate. That says: this memory lacks a write that was answered, which is so if the gate went back to a copy from before
   that write. So one bit in the gate and one in the writer stand for the numbers. Without a copy there is no need of them. */
byte seen[DOORS + KEEPERS];           /* the latest generation that a writer was answered */
byte heard;                           /* writers that were answered a write which the copy does not hold */
#define worker(number) (DOORS + (number))
#define is_older(w) (gate.open < seen[w])
#define lacks_write(w) (gate.open == seen[w] && has(heard & ~gate.fresh, w))
#define forgot(w) (!mutant(NO_FENCE) && \
  (is_older(w) && !mutant(GENERATION_UNCHECKED) || lacks_write(w) && !mutant(NUMBERS_UNCHECKED)))
#define notes (saved && (!REPLICAS || mutant(NOTES_WITHOUT_COPIES)))
inline write_fence(w) { if :: saved -> gate.fresh = gate.fresh | bit(w) :: else fi }
inline hear(w) {           /* with REPLICAS only what the copy holds is noted */
  if :: gate.open && gate.open >= seen[w] -> seen[w] = gate.open; if :: notes -> heard = heard | bit(w) :: else fi :: else fi }
inline save() { heard = heard & ~gate.fresh; gate.fresh = 0; assign(copy, gate); saved = true }
inline spend() {           /* a fault; after the last one no copy comes back */
  faults--;
  if :: !faults && !REPLICAS -> saved = false; assign(copy, new) :: else fi }
inline close() { if :: !lossy -> broken("a gate was closed that had lost nothing\n") :: else fi; gate.open = 0 }

/* ---- front door ---- */
#define knows_more(w) (is_older(w) || lacks_write(w))
#define a_door_knows_more (!late && (knows_more(0) || knows_more(DOORS - 1)))
#define may_ask (gate.open && !forgot(_pid))
#define sells(door) (gate.open && !forgot(door) && !waits[door] && (asked == bit(DOORS) - 1 || mutant(NO_VOUCHING)))
#define may_sell sells(_pid)
#define answers (!REPLICAS || mutant(ANSWERS_WITHOUT_COPIES))
active [DOORS] proctype front_door() {
end: do
  :: d_step { gate.open && forgot(_pid) && !mutant(REFUSES_QUIETLY) -> close() }
  /* vouch.lua: a server that is new sells nothing before each door that lives has asked it. */
  :: d_step { may_ask && (!has(asked, _pid) || !gate.noted) -> asked = asked | bit(_pid); gate.noted = 1 }
  /* reserve.lua: checks, takes the unit, remembers the key and writes the outbox, all in one step. */
  :: atomic { accepted < ORDERS && may_sell && gate.left && gate.sale ->
       if :: a_door_knows_more -> broken("a gate sold that had forgotten what a door was answered\n") :: else fi;
       gate.left--; gate.newest = accepted + 1;
       if :: gate.outbox = gate.outbox | bit(accepted) :: mutant(OUTBOX_APART) fi;
       gate.pending = gate.pending | bit(accepted); gate.took = gate.took | bit(accepted);
       if :: gate.sale == 2 -> second = second | bit(accepted) :: else fi;
       if :: KEYS && (!gate.key || mutant(KEY_IGNORED)) -> keyed = keyed | bit(accepted); gate.key = accepted + 1 :: true fi;
       write_fence(_pid);
       if :: answers -> hear(_pid); if :: REPLICAS -> told = told | bit(accepted) :: else fi
          :: !answers -> waits[_pid] = accepted + 1; if :: mutant(NOTES_WITHOUT_COPIES) -> hear(_pid) :: else fi
          :: !mutant(REVERTS_UNKNOWN)     /* the answer is lost; unknown is not failed */
          :: mutant(REVERTS_UNKNOWN) -> gate.left++
       fi;
       accepted++ }
  /* REPLICAS: WAIT. The answer is 200 once the copy has it, and OUTCOME_UNKNOWN after a while. */
  :: d_step { waits[_pid] && has(copy.took, waits[_pid] - 1) -> told = told | bit(waits[_pid] - 1); hear(_pid); waits[_pid] = 0 }
  :: d_step { waits[_pid] -> waits[_pid] = 0 }
  /* The key again: the answer is repeated, once the copy has the order. */
  :: d_step { REPLICAS && may_sell && gate.key && (has(copy.took, gate.key - 1) || mutant(REPEATS_WITHOUT_COPIES)) ->
       told = told | bit(gate.key - 1) }
  /* At an old primary no copy ever comes. */
  :: d_step { accepted < ORDERS && isolated && mutant(ANSWERS_WITHOUT_COPIES) -> told = told | bit(accepted); accepted++ }
  /* It dies, and another one begins that has seen nothing. */
  :: d_step { faults && (seen[_pid] || waits[_pid]) ->
       seen[_pid] = 0; heard = heard & ~bit(_pid); waits[_pid] = 0; asked = asked | bit(_pid); spend() }
  od }

/* ---- relay: an entry that another relay has read may be claimed ---- */
#define r (_pid - DOORS)
#define entry (reads[r] - 1)
active [RELAYS] proctype relay() {
end: do
  :: atomic { !reads[r] && gate.outbox & ~unread && (!r || reads[0]) -> pick((gate.outbox & ~unread), reads[r]);
       way[r] = !REPLICAS || mutant(RELAYS_WITHOUT_COPIES);
       if :: mutant(DELETES_FIRST) -> gate.outbox = gate.outbox & ~bit(entry) :: else fi }
  :: d_step { !reads[r] && isolated && mutant(RELAYS_WITHOUT_COPIES) -> reads[r] = highest(isolated); way[r] = 1 }
  /* REPLICAS: WAIT. No copy will come of what the primary itself lacks. */
  :: d_step { reads[r] && !way[r] && has(copy.took | settled, entry) -> way[r] = 1 }
  :: d_step { reads[r] && !way[r] && !has(gate.outbox, entry) -> reads[r] = 0 }
  :: d_step { way[r] == 1 -> send(entry); way[r] = 2 }
  /* Only the bus' confirm lets it acknowledge. */
  :: d_step { way[r] == 2 -> gate.outbox = gate.outbox & ~bit(entry); reads[r] = 0; way[r] = 0 }
  /* It dies, or gives up; the entry stays in the outbox. */
  :: d_step { reads[r] && faults ->
       if :: mutant(ENTRIES_ABANDONED) -> unread = unread | bit(entry) :: else fi;
       reads[r] = 0; way[r] = 0; spend() }
  od }

/* ---- fulfilment: settle, clear, acknowledge; each is tried again until it works ---- */
/* clear.lua: only the call that finds the evidence, and takes it away, gives back the unit of a failed order. */
#define is_out(o) (has(gate.pending, o) || mutant(RELEASES_WITHOUT_EVIDENCE))
#define is_current(o) (gate.sale == sale_of(o) || mutant(RELEASES_TO_ANOTHER_SALE))
#define is_given_back(o) (has(failed, o) && !mutant(RELEASES_NOTHING) || has(rejected, o) && mutant(RELEASES_REJECTED))
inline clear(o, w) {
  if :: gate.open && forgot(w) -> close() :: else fi;
  if :: is_out(o) && is_current(o) && is_given_back(o) ->
          if :: !has(gate.took & failed, o) || gate.sale != sale_of(o) -> broken("a unit was released that was not out\n")
             :: else fi;
          gate.took = gate.took & ~bit(o); gate.left++
     :: else fi;
  if :: !mutant(RELEASES_TWICE) || !has(failed, o) -> gate.pending = gate.pending & ~bit(o) :: else fi;
  write_fence(w); hear(w)
}
#define f (_pid - DOORS - RELAYS)
#define order (holds[f] - 1)
#define is_known (has(settled, order) && !mutant(SETTLES_TWICE))
#define has_unit (units_left(sale_of(order)) > 0 && !(lossy && mutant(REJECTS_AFTER_A_LOSS)) || mutant(NO_GUARD))
#define key_has_bought (has(keyed, order) && confirmed & keyed && !mutant(KEY_NOT_GUARDED))
active [KEEPERS] proctype fulfilment() {
end: do
  :: atomic { !step[f] && bus ->
       pick(bus, holds[f]); bus = bus & ~bit(order);
       if :: !mutant(ACKNOWLEDGES_BEFORE_COMMIT) -> unacked = unacked | bit(f) :: else fi;
       if :: mutant(CLEARS_BEFORE_SETTLING) -> gate.pending = gate.pending & ~bit(order) :: else fi;
       step[f] = 1 }
  /* settle_batch: one transaction. An order that is known stays as it is. The guards: sold <= stock; a
     key buys once, also where the gate forgot which order it got. */
  :: atomic { step[f] == 1 ->
       if :: is_known -> if :: mutant(FORGETS_FAILED) -> gate.pending = gate.pending & ~bit(order) :: else fi
          :: !is_known -> failed = failed | bit(order)     /* its payment is declined */
          :: !is_known && has_unit && !key_has_bought -> confirmed = confirmed | bit(order); sold[sale_of(order)]++
          :: !is_known && (!has_unit || key_has_bought) -> rejected = rejected | bit(order)
       fi;
       if :: mutant(ACKNOWLEDGES_BEFORE_CLEARING) -> unacked = unacked & ~bit(f) :: else fi;
       step[f] = 2 }
  :: d_step { step[f] == 1 && gate.open && settled && !is_known && mutant(PUTS_BACK) ->
       send(order); unacked = unacked & ~bit(f); holds[f] = 0; step[f] = 0 }
  :: d_step { step[f] == 2 -> if :: !mutant(CLEARS_NOTHING) -> clear(order, worker(f)) :: else fi; step[f] = 3 }
  /* The primary that was asked has failed over: the next one is asked. */
  :: d_step { step[f] == 3 && REPLICAS && has(gate.pending, order) && !mutant(RELEASES_TWICE) -> step[f] = 2 }
  /* Acknowledged last. Where the bus has taken the delivery back, this changes nothing. */
  :: d_step { step[f] == 3 && (!REPLICAS || !has(copy.pending, order) || mutant(CLEARS_WITHOUT_COPIES)) ->
       unacked = unacked & ~bit(f); holds[f] = 0; step[f] = 0 }
  od }

/* ---- keeper: closes a gate that is wrong, rebuilds it once nothing is under way, and opens it ---- */
#define k (_pid - DOORS - RELAYS - KEEPERS)
#define missing (units_left(sales) - gate.left)   /* units that the gate has fewer than the ledger says */
#define has_copies(number) (!REPLICAS || copy.sale >= number || mutant(NOTED_WITHOUT_COPIES))
#define coming (gate.sale < sales && offered < sales && !sold[sales])
#define explained (gate.sale == sales && missing >= 0 && missing <= count(gate.pending) || coming)
#define outbox_is_used (gate.outbox && !mutant(OUTBOX_NOT_READ))
#define bus_is_used (bus && !mutant(BUS_NOT_READ) || unacked && !mutant(CONSUMERS_NOT_COUNTED))
#define uses(one, other) (!mutant(READ_ONLY_BEFORE) && (mutant(BUS_BEFORE_OUTBOX) -> other : one))
#define looks_once (mutant(SALES_READ_EARLY) || mutant(BUS_BEFORE_OUTBOX))
#define overtaken (gate.rebuilding != gen[k] && !mutant(REBUILD_UNCHECKED))
#define key_order (confirmed & keyed && !mutant(KEY_OF_THE_NEWEST) -> highest(confirmed & keyed) : highest(settled & keyed))
#define overlooks (confirmed & ~(gate.took | lost) && gate.open == gen[k] && has(compared, k))
#define is_newer(ledger) (mutant(GATE_READ_FIRST) -> units[k] < highest(settled) : gate.newest < ledger)
#define is_outdated (!mutant(LEDGER_NOT_COMPARED) && (is_newer(units[k]) || gate.lacks & settled))
#define opens_wrong (!lost && gate.left != units_left(gate.sale) || gate.sale < offered)
#define under_way ((gate.outbox | bus | held) & ~(settled | lost))
/* open_sale.lua: a newer sale replaces an older one, never the other way round. */
#define takes(number) (gate.sale < number || gate.sale > number && mutant(OLDER_SALE_WINS))
inline offer(number) { if :: takes(number) -> gate.sale = number; gate.left = STOCK :: else fi }
inline rest() {
  if :: lock == k + 1 && !mutant(LOCK_KEPT) -> lock = 0 :: else fi;
  task[k] = 0; gen[k] = 0; units[k] = 0; of_sale[k] = 0
}
active [KEEPERS] proctype keeper() {
end: do
  /* Of each new server it asks whether it is older than the ledger's orders. If so, it closes it; if not, it clears once
     more what is settled and pending, since the server may have a copy from before the clearing. */
  :: d_step { !task[k] && gate.open && !has(compared, k) ->
       compared = compared | bit(k); gen[k] = gate.open; task[k] = COMPARE;
       units[k] = (mutant(GATE_READ_FIRST) -> gate.newest : highest(settled)) }
  :: d_step { task[k] == COMPARE ->
       if :: is_outdated -> units[k] = 0; task[k] = CLOSE
          :: else ->
               if :: overlooks -> broken("a gate was kept that lacked what the ledger knew\n") :: else fi;
               gen[k] = 0; units[k] = gate.pending & settled; task[k] = CLEAR;
               if :: !units[k] || mutant(SETTLED_COPY_KEPT) || mutant(CLEARS_WITHOUT_COPIES) -> rest() :: else fi
       fi }
  :: d_step { task[k] == CLEAR -> clear(highest(units[k]) - 1, worker(k)); units[k] = units[k] & ~bit(highest(units[k]) - 1);
       if :: !units[k] -> rest() :: else fi }
  /* It closes a gate that has forgotten what this fulfilment was answered, is not the latest, or differs from the ledger by
     more than the pending orders explain (the audit). */
  :: d_step { !task[k] && gate.open && (forgot(worker(k)) || gate.open < latest && !mutant(GENERATION_UNCHECKED) ||
              !explained && !mutant(NO_AUDIT)) -> gen[k] = gate.open; task[k] = CLOSE }
  /* close.lua: unless another keeper has rebuilt it since. */
  :: d_step { task[k] == CLOSE ->
       if :: gate.open && gate.open <= gen[k] -> close()
          :: gate.open > gen[k] && mutant(CLOSES_A_LATER_ONE) -> broken("a later gate was closed\n")
          :: else fi;
       rest() }
  /* It offers a sale whose front door could not, and notes that. */
  :: d_step { !task[k] && gate.open && offered < sales && !mutant(NOT_OFFERED) ->
       of_sale[k] = sales; task[k] = NOTE; if :: !sold[sales] -> offer(sales) :: else fi }
  :: d_step { task[k] == NOTE && has_copies(of_sale[k]) -> offered = of_sale[k]; rest() }
  :: d_step { task[k] == NOTE && !has_copies(of_sale[k]) && gate.sale < of_sale[k] -> rest() }
  /* A closed gate is rebuilt once nothing is under way. This first look spares rebuilds that would be in vain. */
  :: d_step { !task[k] && !gate.open && !holds[k] && (!outbox_is_used && !bus_is_used || looks_once) -> task[k] = LOCK }
  :: d_step { task[k] == LOCK ->
       if :: !lock && !gate.open || mutant(NO_LOCK) -> lock = k + 1; task[k] = NUMBER :: else -> rest() fi }
  :: d_step { task[k] == NUMBER -> latest++; gen[k] = latest; task[k] = BEGIN }
  /* begin.lua. From here on the scripts of earlier rebuilds are refused, and so the gate can't open under this one. */
  :: d_step { task[k] == BEGIN ->
       if :: gate.open && !mutant(BEGINS_AT_AN_OPEN_GATE) -> rest()
          :: else ->
               if :: gate.open -> broken("a later gate was closed\n") :: else fi;
               gate.open = (mutant(OPENS_TOO_EARLY) -> gen[k] : 0); gate.rebuilding = gen[k]; moved = false;
               gate.fresh = 0; gate.newest = 0; gate.lacks = 0; gate.took = 0; units[k] = units_left(sales);
               task[k] = READ_OUTBOX; if :: !mutant(PENDING_STAYS) -> gate.pending = 0 :: else fi
       fi }
  /* So what is drained now stays drained. A relay takes an entry to the bus: the outbox is looked at before the bus. */
  :: d_step { task[k] == READ_OUTBOX && !(outbox_is_used && mutant(SALES_READ_EARLY)) ->
       if :: uses(outbox_is_used, bus_is_used) -> rest() :: else -> task[k] = READ_BUS fi }
  :: d_step { task[k] == READ_BUS && !(bus_is_used && mutant(SALES_READ_EARLY)) ->
       if :: uses(bus_is_used, outbox_is_used) -> rest() :: else -> task[k] = READ_SALES fi }
  :: d_step { task[k] == READ_SALES ->
       of_sale[k] = sales; task[k] = RESTORE;
       if :: !mutant(SALES_READ_EARLY) -> units[k] = units_left(sales) :: else fi }
  :: d_step { task[k] == RESTORE ->
       if :: overtaken -> rest()
          :: else ->
               if :: under_way -> broken("a rebuild overwrote what was under way\n") :: else fi;
               if :: gate.sale > of_sale[k] && !mutant(REPLACES_A_NEWER_SALE)
                  :: else -> gate.sale = of_sale[k]; gate.left = units[k]
               fi;
               units[k] = 0; of_sale[k] = 0; task[k] = REMEMBER
       fi }
  :: d_step { task[k] == REMEMBER ->
       if :: overtaken -> rest()
          :: else -> task[k] = REOPEN;
               gate.key = (!key_order || mutant(KEY_NOT_RESTORED) || gate.key && mutant(KEY_KEPT) -> gate.key : key_order);
               if :: confirmed & keyed && gate.key && !has(confirmed, gate.key - 1) -> broken("a key got a wrong order\n")
                  :: else fi
       fi }
  :: d_step { task[k] == REOPEN ->
       if :: (!overtaken || mutant(OPENS_OVERTAKEN)) && (!moved || mutant(OPENS_ELSEWHERE)) ->
               if :: opens_wrong -> broken("a gate was opened with other units than the ledger had left\n") :: else fi;
               if :: !lost && !gate.key && key_order -> broken("a gate was opened that had forgotten a key\n") :: else fi;
               excused = excused + gate.left - units_left(gate.sale) + count((bus | held | carried) & ~settled);
               gate.open = gen[k]; gate.rebuilding = 0; gate.noted = !mutant(SERVER_NOT_NOTED); gate.fresh = 0;
               gate.newest = highest(settled); gate.took = confirmed; asked = bit(DOORS) - 1; late = false; moved = false;
               if :: !saved -> heard = 0 :: else fi
          :: else fi;
       rest() }
  /* Fulfilment and keeper die together. */
  :: atomic { faults && (step[k] || seen[worker(k)] || task[k]) ->
       if :: has(unacked, k) -> send(holds[k] - 1); unacked = unacked & ~bit(k) :: else fi;
       holds[k] = 0; step[k] = 0; seen[worker(k)] = 0; heard = heard & ~bit(worker(k));
       if :: compared = compared & ~bit(k) :: !task[k] fi;     /* Another one begins, or one that has compared goes on. */
       rest(); spend() }
  od }

/* ---- operator: opens a sale, first in the ledger ---- */
active proctype operator() {
end: do
  :: sales < SALES -> sales++;     /* It may die after each step; a keeper goes on. */
       if :: d_step { true -> offer(sales) }; if :: has_copies(sales) -> if :: offered = sales :: true fi :: true fi :: true fi
  :: d_step { sales == 2 && takes(1) -> offer(1) }     /* A door that was held up offers the sale before. */
  od }

/* ---- what may happen ---- */
#define differs (gate.outbox != copy.outbox || gate.sale != copy.sale || gate.left != copy.left || gate.key != copy.key || \
  gate.open != copy.open || gate.rebuilding != copy.rebuilding || gate.pending != copy.pending || gate.fresh)
inline fall_back() {       /* What the server sells from now on must not hide what its copy lacks. */
  lossy = lossy || !REPLICAS; moved = copy.rebuilding > 0; late = false; compared = 0;
  assign(gate, copy); asked = (gate.noted -> 0 : bit(DOORS) - 1);
  excused = excused + (gate.open -> count((confirmed | bus | held | carried) & ~(gate.took | failed | rejected)) : 0);
  if :: !mutant(COPY_NOT_NOTED) -> gate.lacks = gate.lacks | (bit(accepted) - 1) & ~(bit(gate.newest) - 1) :: else fi }
#define elsewhere (bus | held | settled)
active proctype environment() { byte n;
end: do
  :: d_step { !REPLICAS && faults && !saved -> save() }
  :: d_step { faults ->                        /* Redis forgets everything; a replica copies that. */
       lost = lost | gate.outbox & ~elsewhere; waits[0] = 0; waits[DOORS - 1] = 0; isolated = 0;
       assign(gate, new); gate.open = 0; gate.sale = 0; gate.left = 0; lossy = true;
       if :: REPLICAS -> assign(copy, gate) :: else fi; spend() }
  :: d_step { !REPLICAS && faults && saved ->  /* It goes back to the copy: a new server with an older memory. */
       lost = lost | gate.outbox & ~(copy.outbox | elsewhere);
       fall_back(); spend() }
  :: d_step { faults && asked && asked != bit(DOORS) - 1 ->   /* A door is paused for longer than a new server waits. */
       asked = bit(DOORS) - 1; late = true; spend() }
  :: d_step { REPLICAS && differs -> save() }
  :: d_step { REPLICAS && faults ->            /* The replica takes over, while the old primary still answers some. */
       isolated = gate.outbox; lost = lost | gate.outbox & ~(copy.outbox | elsewhere | told);
       fall_back(); waits[0] = 0; waits[DOORS - 1] = 0; spend() }
  :: isolated -> isolated = 0                  /* The old primary comes back, as a replica. */
  :: d_step { faults && lock -> lock = 0; spend() }     /* PostgreSQL loses the session with the lock. */
  :: atomic { faults && unacked ->        /* The bus loses a consumer and delivers again. */
       if :: has(unacked, 0) -> n = 0 :: has(unacked, LAST) -> n = LAST fi;
       send(holds[n] - 1); unacked = unacked & ~bit(n); n = 0; spend() }
  od }

/* ---- what must hold ---- */
#define vanished ((bit(accepted) - 1) & ~(gate.outbox | bus | held | settled | lost))
#define idle !(gate.outbox || bus || holds[0] || holds[LAST] || reads[0] || reads[RELAYS - 1] || task[0] || task[LAST])
#define content (gate.open == latest && compared == bit(KEEPERS) - 1 && explained && !coming)
#define remembers !(forgot(0) || forgot(DOORS - 1) || forgot(DOORS) || forgot(DOORS + LAST))
#define hidden (gate.pending || missing)
#ifdef LIVE
ltl opens { [] <> (gate.open == latest) }
ltl settles { [] ((accepted < 1 || <> (has(settled | lost, 0))) && (accepted < 2 || <> (has(settled | lost, 1)))) }
#else
active proctype judge() {
end: do
  :: d_step { vanished -> broken("an accepted purchase vanished\n") }
  :: d_step { sold[1] > STOCK || sold[2] > STOCK || sold[1] + sold[2] != count(confirmed) -> broken("the ledger oversold\n") }
  :: d_step { confirmed & failed | confirmed & rejected | failed & rejected -> broken("an order had two terminal states\n") }
  :: d_step { count(confirmed & keyed) > 1 -> broken("a key bought twice\n") }
  :: d_step { latest > 3 * (1 + ORDERS + FAULTS) -> broken("keepers rebuilt again and again\n") }
  :: d_step { count(rejected) > excused -> broken("more purchases were rejected than were lost\n") }
  :: d_step { idle && content && remembers && hidden -> broken("a unit was neither sold nor on sale\n") }
  :: timeout ->            /* Nothing is left to do for anybody. */
       if :: gate.open != latest || gate.sale != sales -> broken("a gate or a sale stayed closed\n") :: else fi;
       if :: hidden -> broken("a unit was neither sold nor on sale\n") :: else fi;
       if :: !sells(0) || !sells(DOORS - 1) -> broken("a front door sold nothing\n") :: else fi;
       break
  od }
#endif
