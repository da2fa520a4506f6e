import argparse, sys, time
from collections import Counter
from .run import run_schedule, muted
from .schedule import random_schedule
p=argparse.ArgumentParser(); p.add_argument("--schedules",type=int,default=1000); p.add_argument("--seed",type=int,default=0)
p.add_argument("--replay",type=int)
a=p.parse_args()
if a.replay is not None:
    s=random_schedule(a.replay); print(s)
    with muted():
        r=run_schedule(s)
    for e in r.queue.history: print("   ",e)
    for run in [x for rs in r.witness.runs.values() for x in rs]: print(run.receipt, run.instance, run.began, run.until, run.finished)
    print("\n".join(r.violations)); sys.exit(bool(r.violations))
t=time.time(); tried=Counter(); kinds=Counter(); first={}
with muted():
    for seed in range(a.seed,a.seed+a.schedules):
        r=run_schedule(random_schedule(seed)); tried.update(r.tried)
        for v in r.violations[:1]:
            k=v.split(" s: ",1)[-1].split()[0]; kinds[k]+=1
            first.setdefault(k,[]).append((seed,v))
print(time.time()-t, dict(tried)); print(kinds)
for k,l in first.items():
    for seed,v in l[:3]: print(seed,v[-1500:])
